"""A small student on labelled and unlabelled vectors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Engine, EngineConfig
from metaweight.averaging import EMAHook
from metaweight.consistency import ConsistencyMethod, SemiSupervisedProblem

FEATURES, CLASSES = 6, 3


def network(*, dropout: float = 0.0, batch_norm: bool = True) -> nn.Module:
    """Return a network in float64, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, 8),
            nn.BatchNorm1d(8) if batch_norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(8, CLASSES),
        ).double()


def labelled_batch(size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def unlabelled_batch(size: int = 5, seed: int = 100) -> Tensor:
    """Return inputs."""
    return labelled_batch(size, seed)[0]


def noisy(x: Tensor) -> Tensor:
    """Return inputs with noise from torch's stream."""
    return x + 0.1 * torch.randn_like(x)


def student(
    method: ConsistencyMethod,
    *,
    net: nn.Module | None = None,
    loader: Any = None,
    lr: float = 0.1,
    **settings: Any,
) -> SemiSupervisedProblem:
    """Return a problem named ``student``."""
    net = network() if net is None else net
    if method.needs_teacher and "teacher" not in settings:
        settings["teacher"] = EMAHook("student", beta=0.9)
    if method.needs_strong_augment and "strong_augment" not in settings:
        settings["strong_augment"] = noisy
    if loader is None:
        loader = ([labelled_batch()], [unlabelled_batch()])
    return SemiSupervisedProblem(
        "student",
        method=method,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=lr),
        train_data_loader=loader,
        **{"augment": noisy, **settings},
    )


def run(problem: SemiSupervisedProblem, steps: int, *hooks: Any) -> Engine:
    """Run a student alone."""
    hooks = hooks if problem.average is None else (*hooks, problem.average)
    engine = Engine(
        [problem],
        EngineConfig(train_iters=steps, strategy="cpu"),
        {"u2l": {}, "l2u": {}},
        hooks=hooks,
    )
    engine.run()
    return engine


def state(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return copy.deepcopy(net.state_dict())
