"""Networks, optimizers, schedules and loaders of a run, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from metaweight import Config
from metaweight.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    LabelledTensors,
    Normalise,
    Pipeline,
    RandomCropFlip,
    TensorLoader,
)
from metaweight.reweighter.training import one_cycle

from .networks import NETWORKS
from .run import Run
from .settings import stream

LAST_PART = 0.8
"""Share of the steps after which deferred methods begin."""


def trained(
    name: str,
    run: Run,
    data: LabelledTensors,
    generator: torch.Generator,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> dict[str, Any]:
    """Return the arguments common to all classifiers.

    Methods of the same seed start from the same network and draw the same batches.
    """
    network = wrap(NETWORKS[run.setting.network](data.num_classes, generator=generator))
    optimizer = sgd(network, run.protocol.learning_rate, run)
    return {
        "name": name,
        "config": Config(),
        "module": network,
        "optimizer": optimizer,
        "scheduler": schedule(optimizer, run),
        "train_data_loader": loader(data, run, "train"),
    }


def sgd(
    network: nn.Module, learning_rate: float, run: Run, momentum: float | None = None
) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum, the protocol's where none is given."""
    return torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=run.protocol.momentum if momentum is None else momentum,
        weight_decay=run.protocol.weight_decay,
        nesterov=True,
    )


def schedule(optimizer: torch.optim.Optimizer, run: Run) -> LRScheduler:
    """Return the schedule of the protocol."""
    if run.protocol.schedule == "one-cycle":
        return LambdaLR(optimizer, lambda step: one_cycle(step, run.steps))
    steps = [round(share * run.steps) for share in run.protocol.milestones]
    return MultiStepLR(optimizer, steps, gamma=0.1)


def meta_optimizer(network: nn.Module, run: Run) -> torch.optim.Optimizer:
    """Return the optimizer of the weight network.

    ``steady`` averages over ten times as many gradients: what was ``1 - momentum`` is a tenth.
    """
    protocol = run.protocol
    momentum = 0.9 if protocol.meta_optimizer == "adam" else protocol.momentum
    if "steady" in run.method.extras:
        momentum = 1 - (1 - momentum) / 10
    if protocol.meta_optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(),
            lr=protocol.meta_learning_rate,
            betas=(momentum, 0.999),
            weight_decay=protocol.meta_weight_decay,
        )
    return sgd(network, protocol.meta_learning_rate, run, momentum)


def meta_schedule(optimizer: torch.optim.Optimizer, run: Run) -> LRScheduler | None:
    """Return the schedule of the weight network; ``late`` raises its rate for the last part."""
    if "late" in run.method.extras:
        start = round(LAST_PART * run.steps)
        return LambdaLR(optimizer, lambda step: 10.0 if step >= start else 1.0)
    return schedule(optimizer, run) if run.protocol.meta_schedule else None


def loader(data: LabelledTensors, run: Run, part: str, augmented: bool = True) -> TensorLoader:
    """Return batches of the data with the positions of their samples, images augmented."""
    transform = None
    if is_images(data):
        crops = RandomCropFlip(generator=stream(run.seed, f"{part} crops", run.device))
        normalise = Normalise(CIFAR_MEAN, CIFAR_STD)
        transform = Pipeline(crops, normalise) if augmented else normalise
    return TensorLoader(
        data,
        run.protocol.batch_size,
        transform=transform,
        generator=stream(run.seed, f"{part} order"),
        with_replacement=run.protocol.with_replacement,
        with_indices=True,
        device=run.device,
    )


def is_images(data: LabelledTensors) -> bool:
    """Whether inputs are images of bytes, which are augmented and normalised."""
    return data.inputs.dtype == torch.uint8


def evaluation_transform(data: LabelledTensors) -> Normalise | None:
    """Return the transform of images before the network at test time; ``None`` for digits."""
    return Normalise(CIFAR_MEAN, CIFAR_STD) if is_images(data) else None


class OfPixels(nn.Module):
    """A network for normalised images that also takes bytes, for the search for wrong labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._normalise = Normalise(CIFAR_MEAN, CIFAR_STD)

    def forward(self, images: Tensor) -> Tensor:
        given = self._normalise(images) if images.dtype == torch.uint8 else images
        logits: Tensor = self.network(given)
        return logits


class TwoPhaseLoader:
    """Batches of one loader for some steps, and of another ever after.

    Args:
        first: The first loader.
        steps: Its batches.
        second: The other loader.
    """

    def __init__(self, first: TensorLoader, steps: int, second: TensorLoader) -> None:
        self._loaders = first, second
        self._steps = steps
        self._given = 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        first, second = self._loaders
        if self._given >= self._steps:
            yield from second
            return
        for batch in first:
            self._given += 1
            yield batch
            if self._given >= self._steps:
                return

    def state_dict(self) -> dict[str, Any]:
        """Save the position and the state of both loaders."""
        return {"given": self._given, "loaders": [part.state_dict() for part in self._loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` saved."""
        self._given = state["given"]
        for part, saved in zip(self._loaders, state["loaders"], strict=True):
            part.load_state_dict(saved)
