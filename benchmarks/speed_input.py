"""Time that a step waits for its batch, with different loaders.

::

    python benchmarks/speed_input.py                       # both networks, about 5 minutes
    python benchmarks/speed_input.py --network small --rounds 3

One Meta-Weight-Net step on batches of 100 images of 32 × 32 pixels, cropped and mirrored at random:
sample by sample by torchvision on PIL images, as most programs do, or as whole batches of tensors.
``small`` is a network of 5 514 parameters, whose step is as short as a large one's on an
accelerator. Feeds take turns; each turn has a network and workers of its own. Waiting is the time
of drawing batches. Workers also slow a step by the cores they use, so a step's time is compared
with that on one fixed batch, too. Medians are printed and written as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from speed_resnet32 import META_LR, SGD
from study.files import write_text
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from turns import environment, markdown

from metaweight import Engine, EngineConfig
from metaweight.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    LabelledTensors,
    Normalise,
    Pipeline,
    RandomCropFlip,
    SampleLoader,
    TensorLoader,
)
from metaweight.models import ResNet32
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

SAMPLES = 10_000
FIXED = "one fixed batch"
MakeLoader = Callable[[], Iterable[Any]]


class Turn(NamedTuple):
    """Measurements of one turn of a feed, in seconds per step."""

    step: float
    waited: float
    alone: float
    """Time of a batch, without any step."""


class PilImages(Dataset[Any]):
    """Images as torchvision's CIFAR-10 gives them, under He et al.'s augmentation."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images: np.ndarray[Any, Any] = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Watched:
    """A loader whose draws are timed, in seconds."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.draws: list[float] = []
        self._epoch = self._batches()

    def __iter__(self) -> Iterator[Any]:
        self._epoch = self._batches()
        return self._epoch

    def _batches(self) -> Generator[Any, None, None]:
        start = time.perf_counter()
        for batch in self.loader:
            self.draws.append(time.perf_counter() - start)
            yield batch
            start = time.perf_counter()

    def close(self) -> None:
        """Delete the loader, so that its workers end."""
        self._epoch.close()
        self.loader = ()


def feeds(size: int, device: str) -> dict[str, MakeLoader]:
    """Return makers of the loaders of each feed, by name."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (SAMPLES,), generator=generator)
    pil = PilImages(images, labels)
    tensors = LabelledTensors(images, labels, labels, torch.arange(SAMPLES), 10).to(device)

    def in_memory() -> Iterable[Any]:
        batch = tensors.subset(torch.arange(size))
        return [(Normalise(CIFAR_MEAN, CIFAR_STD)(batch.inputs), batch.labels)]

    def torch_loader(workers: int) -> MakeLoader:
        return lambda: DataLoader(
            pil,
            size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.startswith("cuda"),
        )

    def sample_loader(workers: int) -> MakeLoader:
        return lambda: SampleLoader(pil, size, num_workers=workers, device=device)

    def tensor_loader() -> Iterable[Any]:
        draws = torch.Generator(device).manual_seed(0)
        steps = RandomCropFlip(4, generator=draws), Normalise(CIFAR_MEAN, CIFAR_STD)
        return TensorLoader(tensors, size, transform=Pipeline(*steps))

    return {
        FIXED: in_memory,
        "PIL, torch's DataLoader, 0 workers": torch_loader(0),
        "PIL, torch's DataLoader, 2 workers": torch_loader(2),
        "PIL, SampleLoader, 0 workers": sample_loader(0),
        "PIL, SampleLoader, 1 worker": sample_loader(1),
        "PIL, SampleLoader, 2 workers": sample_loader(2),
        "tensors, TensorLoader with RandomCropFlip": tensor_loader,
    }


def small_network() -> nn.Module:
    """Return two strided convolutions with batch norm and a linear layer."""
    layers: list[nn.Module] = []
    for before, channels in ((3, 16), (16, 32)):
        convolution = nn.Conv2d(before, channels, 3, stride=2, padding=1)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": small_network, "resnet32": ResNet32}


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement.

    Attributes:
        network: Name of the network.
        size: Images of a batch.
        steps: Steps, or batches, of a turn.
        warm_ups: Steps before those; more than workers read ahead.
        device: Device of the network.
    """

    network: str
    size: int
    steps: int
    warm_ups: int
    device: str


def program(loader: Iterable[Any], setting: Setting) -> Engine:
    """Return a Meta-Weight-Net fed by ``loader``; its few clean samples stay on the device."""
    torch.manual_seed(0)
    net, weights = NETWORKS[setting.network](), MetaWeightNet()
    images, labels = torch.randn(setting.size, 3, 32, 32), torch.randint(10, (setting.size,))
    classifier = WeightedClassifier(
        "classifier",
        weights="reweight",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), **SGD),
        train_data_loader=loader,
    )
    reweight = WeightLearner(
        "reweight",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=META_LR),
        train_data_loader=[(images.to(setting.device), labels.to(setting.device))],
    )
    graph = {"u2l": {reweight: [classifier]}, "l2u": {classifier: [reweight]}}
    return Engine([reweight, classifier], EngineConfig(device=setting.device), graph)


def measure(setting: Setting, rounds: int) -> dict[str, list[Turn]]:
    """Return the measurements of every feed, a turn for each round."""
    makes = feeds(setting.size, setting.device)
    turns: dict[str, list[Turn]] = {name: [] for name in makes}
    names = list(makes)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(one_turn(makes[name], setting))
            gc.collect()
    return turns


def one_turn(make: MakeLoader, setting: Setting) -> Turn:
    """Return the times of a feed, first without and then with steps."""
    alone = seconds_each(chain.from_iterable(repeat(make())).__next__, setting)
    loader = Watched(make())
    step = seconds_each(program(loader, setting).train_step, setting)
    loader.close()
    return Turn(step, statistics.fmean(loader.draws[-setting.steps :]), alone)


def seconds_each(step: Callable[[], Any], setting: Setting) -> float:
    """Return the mean seconds of steps after the warm-up."""
    start = 0.0
    for number in range(setting.warm_ups + setting.steps):
        if number == setting.warm_ups:
            start = synchronised(setting.device)
        step()
    return (synchronised(setting.device) - start) / setting.steps


def synchronised(device: str) -> float:
    """Return the time at which all that was started on ``device`` is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def table(turns: dict[str, list[Turn]]) -> list[dict[str, float | str]]:
    """Return medians of every feed; ratios of steps to those on a fixed batch are by round."""
    rows: list[dict[str, float | str]] = []
    for name, own in turns.items():
        pairs = zip(own, turns[FIXED], strict=True)
        rows.append(
            {
                "contender": name,
                "ms a step": statistics.median(turn.step for turn in own) * 1e3,
                "ms waiting": statistics.median(turn.waited for turn in own) * 1e3,
                "share waiting": statistics.median(turn.waited / turn.step for turn in own),
                f"times {FIXED}": statistics.median(a.step / b.step for a, b in pairs),
                "ms a batch alone": statistics.median(turn.alone for turn in own) * 1e3,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every feed")
    parser.add_argument("--steps", type=int, default=None, help="30 of small, 4 of resnet32")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=None, help="1 of small, 2 of resnet32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/speed_input"))
    arguments = parser.parse_args()
    report, text = {}, []
    for network in NETWORKS if arguments.network == "all" else [arguments.network]:
        large = network == "resnet32"
        threads = arguments.threads or (2 if large else 1)
        torch.set_num_threads(threads)
        setting = Setting(
            network,
            arguments.batch_size,
            arguments.steps or (4 if large else 30),
            2 if large else 8,
            arguments.device,
        )
        rows = table(measure(setting, arguments.rounds))
        run_on = environment(threads)
        report[network] = {"environment": run_on, "setting": asdict(setting), "rows": rows}
        title = f"{network}, {setting.size} images a batch, {setting.device}"
        text.append(markdown(rows, f"{title} ({run_on})"))
    print("\n\n".join(text))
    write_text(arguments.out / "speed_input.json", json.dumps(report, indent=2))
    write_text(arguments.out / "speed_input.md", "\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
