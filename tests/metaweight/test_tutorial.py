"""Betty's data-reweighting tutorial runs as it was written, but for its imports.

The program below has the tutorial's structure: three modules beside it whose names everybody uses
(``data``, ``model``, ``utils``), problems that configure themselves, settings spelt as Betty 0.1
spelt them, and a validation that keeps its best result in a global. The data lie in CIFAR-10's own
archive layout, made small.
"""

from __future__ import annotations

import math
import pickle
import runpy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fork_server import start_module

from metaweight.betty import serve

IMPORTS = {
    "metaweight": "from metaweight import Config, Engine, EngineConfig, ImplicitProblem",
    "betty": """\
from betty.engine import Engine
from betty.problems import ImplicitProblem
from betty.configs import Config, EngineConfig""",
}

PROGRAM = """\
import argparse

import torch
import torch.nn.functional as F
import torch.optim as optim

from model import *
from data import *
from utils import *

{imports}

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--fp16", action="store_true")
parser.add_argument("--distributed", action="store_true")
parser.add_argument("--rollback", action="store_true")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--meta_net_hidden_size", type=int, default=100)
parser.add_argument("--meta_net_num_layers", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--dampening", type=float, default=0.0)
parser.add_argument("--nesterov", type=bool, default=False)
parser.add_argument("--weight_decay", type=float, default=5e-4)
parser.add_argument("--meta_lr", type=float, default=1e-5)
parser.add_argument("--meta_weight_decay", type=float, default=0.0)
parser.add_argument("--dataset", default="cifar10")
parser.add_argument("--data_root", default="../data")
parser.add_argument("--num_meta", type=int, default=20)
parser.add_argument("--imbalanced_factor", type=int, default=None)
parser.add_argument("--batch_size", type=int, default=100)
parser.add_argument("--train_iters", type=int, default=10000)
parser.add_argument("--valid_step", type=int, default=100)
args = parser.parse_args()
set_seed(args.seed)

train_dataloader, meta_dataloader, test_dataloader = build_dataloader(
    root=args.data_root,
    num_meta_total=args.num_meta,
    imbalanced_factor=args.imbalanced_factor,
    batch_size=args.batch_size,
)


class Inner(ImplicitProblem):
    def forward(self, x):
        return self.module(x)

    def training_step(self, batch):
        inputs, labels = batch
        outputs = self.forward(inputs)
        loss_vector = F.cross_entropy(outputs, labels.long(), reduction="none")
        loss_vector_reshape = torch.reshape(loss_vector, (-1, 1))
        weight = self.outer(loss_vector_reshape.detach())
        loss = torch.mean(weight * loss_vector_reshape)
        return loss

    def configure_train_data_loader(self):
        return train_dataloader

    def configure_module(self):
        return ResNet32(args.dataset == "cifar10" and 10 or 100).to(device=args.device)

    def configure_optimizer(self):
        return optim.SGD(
            self.module.parameters(),
            lr=args.lr,
            momentum=args.momentum,
            dampening=args.dampening,
            weight_decay=args.weight_decay,
            nesterov=args.nesterov,
        )

    def configure_scheduler(self):
        return optim.lr_scheduler.MultiStepLR(self.optimizer, milestones=[2, 3], gamma=0.1)


class Outer(ImplicitProblem):
    def forward(self, x):
        return self.module(x)

    def training_step(self, batch):
        inputs, labels = batch
        outputs = self.inner(inputs)
        loss = F.cross_entropy(outputs, labels.long())
        acc = (outputs.argmax(dim=1) == labels.long()).float().mean().item() * 100
        return {{"loss": loss, "acc": acc}}

    def configure_train_data_loader(self):
        return meta_dataloader

    def configure_module(self):
        meta_net = MLP(
            hidden_size=args.meta_net_hidden_size, num_layers=args.meta_net_num_layers
        ).to(device=args.device)
        return meta_net

    def configure_optimizer(self):
        return optim.Adam(
            self.module.parameters(), lr=args.meta_lr, weight_decay=args.meta_weight_decay
        )


outer_config = Config(type="darts", fp16=args.fp16, log_step=100)
inner_config = Config(type="darts", fp16=args.fp16, unroll_steps=1)

outer = Outer(name="outer", config=outer_config, device=args.device)
inner = Inner(name="inner", config=inner_config, device=args.device)

best_acc = -1


class ReweightingEngine(Engine):
    @torch.no_grad()
    def validation(self):
        correct = 0
        total = 0
        global best_acc
        for x, target in test_dataloader:
            x, target = x.to(args.device), target.to(args.device)
            with torch.no_grad():
                out = self.inner(x)
            correct += (out.argmax(dim=1) == target).sum().item()
            total += x.size(0)
        acc = correct / total * 100
        if best_acc < acc:
            best_acc = acc
        return {{"acc": acc, "best_acc": best_acc}}


engine_config = EngineConfig(
    train_iters=args.train_iters,
    valid_step=args.valid_step,
    distributed=args.distributed,
    roll_back=args.rollback,
)
problems = [outer, inner]
u2l = {{outer: [inner]}}
l2u = {{inner: [outer]}}
dependencies = {{"l2u": l2u, "u2l": u2l}}

engine = ReweightingEngine(config=engine_config, problems=problems, dependencies=dependencies)
engine.run()
print(f"IF {{args.imbalanced_factor}} || Best Acc.: {{best_acc}}")
"""

# The archive is not CIFAR-10's, so the checksums are dropped; everything else is torchvision's.
DATA = """\
import copy

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10


class Cifar(CIFAR10):
    train_list = [[name, None] for name, _ in CIFAR10.train_list]
    test_list = [[name, None] for name, _ in CIFAR10.test_list]
    meta = {**CIFAR10.meta, "md5": None}


def build_dataloader(root, num_meta_total, imbalanced_factor, batch_size):
    normalize = transforms.Normalize(
        mean=[x / 255.0 for x in [125.3, 123.0, 113.9]],
        std=[x / 255.0 for x in [63.0, 62.1, 66.7]],
    )
    test_transforms = transforms.Compose([transforms.ToTensor(), normalize])
    train_transforms = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            test_transforms,
        ]
    )
    train = Cifar(root=root, train=True, transform=train_transforms)
    test = Cifar(root=root, train=False, transform=test_transforms)
    classes = len(train.classes)
    available = len(train) // classes - num_meta_total // classes
    meta_indices, train_indices = [], []
    for number in range(classes):
        indices = np.random.permutation(np.flatnonzero(np.array(train.targets) == number))
        kept = available // (imbalanced_factor or 1) ** (number / (classes - 1))
        meta_indices.extend(indices[: num_meta_total // classes])
        train_indices.extend(indices[num_meta_total // classes :][: int(kept)])
    meta = copy.deepcopy(train)
    for part, chosen in ((train, train_indices), (meta, meta_indices)):
        part.data = part.data[chosen]
        part.targets = list(np.array(part.targets)[chosen])
    return (
        DataLoader(train, batch_size=batch_size, shuffle=True),
        DataLoader(meta, batch_size=batch_size, shuffle=True),
        DataLoader(test, batch_size=batch_size),
    )
"""

MODEL = """\
import torch
from torch import nn

from metaweight.models import ResNet32


class MLP(nn.Module):
    def __init__(self, hidden_size, num_layers):
        super().__init__()
        sizes = [1] + [hidden_size] * num_layers
        layers = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, x):
        return torch.sigmoid(self.layers(x))
"""

UTILS = """\
import random

import numpy as np
import torch


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
"""

ARGUMENTS = [
    *("--device", "cpu"),
    *("--batch_size", "8"),
    *("--train_iters", "4"),
    *("--valid_step", "2"),
    *("--imbalanced_factor", "2"),
]
BESIDE = {"data": DATA, "model": MODEL, "utils": UTILS}
IMAGES_PER_FILE = 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's six pickled batches and its metadata, with few and random images."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        content = {
            "batch_label": name,
            "labels": [number % 10 for number in range(IMAGES_PER_FILE)],
            "data": generator.integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8),
            "filenames": [f"{number}.png" for number in range(IMAGES_PER_FILE)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    labels = {"label_names": [f"class {number}" for number in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(labels))
    return root


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with the modules the program imports."""
    for name, text in BESIDE.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def own_modules(beside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a program run in this process import the modules beside it, and nobody after it."""
    earlier = {name: sys.modules.pop(name) for name in BESIDE if name in sys.modules}
    monkeypatch.syspath_prepend(str(beside))
    yield
    for name in BESIDE:
        sys.modules.pop(name, None)
    sys.modules.update(earlier)


def write_program(folder: Path, imports: str) -> Path:
    program = folder / "main.py"
    program.write_text(PROGRAM.format(imports=IMPORTS[imports]))
    return program


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    "roll_back", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "roll-back"]
)
def test_tutorial_runs_under_either_librarys_names(
    roll_back: bool, beside: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {}
    for imports in IMPORTS:
        program = write_program(beside, imports)
        flags = ["--rollback"] if roll_back else []
        monkeypatch.setattr(
            sys, "argv", [str(program), "--data_root", str(archive), *ARGUMENTS, *flags]
        )
        with serve() if imports == "betty" else nullcontext():
            results[imports] = runpy.run_path(str(program), run_name="__main__")
    for result in results.values():
        check(result, roll_back)
    for name, value in state(results["metaweight"]).items():
        torch.testing.assert_close(state(results["betty"])[name], value, rtol=0, atol=0)


def test_tutorial_runs_through_the_door(beside: Path, archive: Path) -> None:
    write_program(beside, "betty")
    asked = ("main.py", "--data_root", str(archive), *ARGUMENTS)
    done = start_module("metaweight.betty", *asked, cwd=beside).wait()
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("IF 2 || Best Acc.: ")
    assert 0 <= float(last.rpartition(" ")[2]) <= 100


def check(result: dict[str, Any], roll_back: bool) -> None:
    """Both problems stepped, learned something finite, and were validated."""
    engine, inner, outer = result["engine"], result["inner"], result["outer"]
    assert type(engine).__mro__[1].__module__ == "metaweight.engines.engine"
    assert engine.config.roll_back is roll_back
    assert (engine.global_step, inner.count, outer.count) == (4, 4, 4)
    assert inner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert 0 <= result["best_acc"] <= 100
    assert all(math.isfinite(value.double().sum()) for value in state(result).values())
    assert all(outer.optimizer.state[p]["exp_avg"].abs().sum() > 0 for p in weight_net(result))


def weight_net(result: dict[str, Any]) -> list[torch.Tensor]:
    return list(result["outer"].module.layers[-1].parameters())


def state(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("inner", "outer")
        for key, value in result[name].module.state_dict().items()
    }
