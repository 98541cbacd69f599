"""Small programs on any device, for what a card must compute as the CPU does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metaweight import Config, Engine, FiniteDifference, Hook, ImplicitProblem, Reweighting, Unroll
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors, RandomCropFlip, TensorLoader
from metaweight.weighting import (
    ClassAwareWeightNet,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
)

from .reweighting import Declared, Judge, Plain, network
from .two_processes import place_of
from .zoo import over

ONE_SIDED = Reweighting(derivative="one_sided")
CLASSES = 4


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def reweighting(
    device: str | None,
    method: Any = "darts",
    *,
    kind: type[ImplicitProblem] = Declared,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = sgd,
    dtype: torch.dtype = torch.float64,
    hooks: Iterable[Hook] = (),
    **settings: Any,
) -> Any:
    """An engine of ``judge`` and ``classifier`` on batches that lie on the device.

    ``device=None`` leaves the choice to ``settings``, those of the engine.
    """
    torch.default_generator.manual_seed(0)
    net, weights = network().to(dtype), MetaWeightNet(8).to(dtype)
    generator = torch.Generator().manual_seed(1)
    drawn = [
        (
            torch.randn(8, 6, generator=generator, dtype=torch.float64).to(device, dtype),
            torch.randint(CLASSES, (8,), generator=generator).to(device),
        )
        for _ in range(4)
    ]
    steps = 2 if isinstance(method, Unroll) else 1
    config = Config(type=method, unroll_steps=steps)
    lower = kind(
        "classifier", config, net, optimizer(net.parameters()), train_data_loader=drawn[:3]
    )
    upper = Judge(
        "judge",
        None,
        weights,
        torch.optim.Adam(weights.parameters(), 0.01),
        train_data_loader=drawn[3:],
    )
    place = {} if device is None else {"strategy": "default", "device": device}
    return over(upper, lower, hooks=hooks, **{"train_iters": 4, **place, **settings})


def images(device: str, hooks: Iterable[Hook] = (), **settings: Any) -> Any:
    """An engine of ready-made problems on augmented images, with class-aware weights."""
    torch.default_generator.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, CLASSES))
    weights = ClassAwareWeightNet(torch.arange(CLASSES), 8)
    labels = torch.arange(12) % CLASSES
    data = LabelledTensors(torch.randn(12, 3, 6, 6), labels)
    lower = WeightedClassifier(
        "classifier",
        Config(type=ONE_SIDED),
        weights="judge",
        module=net,
        optimizer=sgd(net.parameters()),
        train_data_loader=TensorLoader(data, 4, transform=RandomCropFlip(2), device=device),
    )
    upper = WeightLearner(
        "judge",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 0.01),
        train_data_loader=TensorLoader(data, 4, seed=1, device=device),
    )
    place = {"strategy": "default", "device": device}
    return over(upper, lower, hooks=hooks, **place, **settings)


def averaged(device: str, hooks: Iterable[Hook] = (), **settings: Any) -> Any:
    """The first program with an average of the classifier, which a teacher holds too."""
    average = EMAHook("classifier", beta=0.9)
    return reweighting(device, Reweighting(), hooks=[average, *hooks], **settings)


UNWAITING: dict[str, Callable[..., Any]] = {
    "native": partial(reweighting, method=Reweighting()),
    "darts": partial(reweighting, method=FiniteDifference(), kind=Plain),
    "class-aware, one-sided, loaders and augmentation": images,
    "average": averaged,
}
"""Programs whose steps never wait for the device."""


def learned(engine: Any) -> list[Tensor]:
    """Run a program; return its hypergradients and then the classifier's parameters, on the CPU."""
    found: list[Tensor] = []
    judge = engine.judge
    judge.grad_callback = lambda: found.extend(p.grad.cpu() for p in judge.module.parameters())
    engine.run()
    return [*found, *(p.detach().cpu() for p in engine.classifier.module.parameters())]


def one_rank(device: str, port: int, folder: Path) -> None:
    """Run a program as the only process of a group, and write what came of it."""
    os.environ.update(place_of(0, port, world=1))
    backend = {"backend": "gloo"} if device == "cpu" else {}
    engine: Engine = reweighting(None, Reweighting(), strategy="distributed", **backend)
    found = learned(engine)
    whole = torch.full((2,), 3.0, device=engine.device)
    dist.all_reduce(whole)
    name = dist.group.WORLD._get_backend(engine.device).name()
    torch.save({"learned": found, "sum": whole.cpu(), "backend": name}, folder / "found.pt")
    dist.destroy_process_group()
