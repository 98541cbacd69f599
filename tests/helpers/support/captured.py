"""A program of two levels whose steps are captured, or not, and what is compared of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, Engine
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner


def batches(number: int, seed: int, sizes: tuple[int, ...] = (12,)) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(number):
        size = sizes[i % len(sizes)]
        inputs = torch.randn(size, 4, generator=draw, dtype=torch.float64)
        found.append((inputs, torch.randint(3, (size,), generator=draw)))
    return found


def program(
    method: Any = None,
    *,
    steps: int = 1,
    warmup: int = 0,
    rate: float = 0.1,
    scheduled: bool = False,
    adam: bool = False,
    sizes: tuple[int, ...] = (12,),
    network: Any = None,
    lower_type: Any = WeightedClassifier,
    clipping: float = 0.0,
    hooks: Any = (),
    **settings: Any,
) -> Engine:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)]
    made = nn.Sequential(*layers) if network is None else network()
    net, weights = made.double(), MetaWeightNet(6).double()
    kinds = (torch.optim.SGD, {"momentum": 0.9}) if not adam else (torch.optim.AdamW, {})
    below = kinds[0](net.parameters(), rate, **kinds[1])
    above = torch.optim.Adam(weights.parameters(), 0.01)
    scheduler = (
        torch.optim.lr_scheduler.LambdaLR(below, lambda t: (t + 1) ** -0.5) if scheduled else None
    )
    type_ = {} if method is None else {"type": method}
    lower = lower_type(
        "classifier",
        Config(unroll_steps=steps, warmup_steps=warmup, gradient_clipping=clipping, **type_),
        weights="weights",
        module=net,
        optimizer=below,
        scheduler=scheduler,
        train_data_loader=batches(7, 1, sizes),
    )
    upper = WeightLearner(
        "weights",
        classifier="classifier",
        module=weights,
        optimizer=above,
        train_data_loader=batches(5, 2),
    )
    given = {"train_iters": 60, "progress": False, "valid_step": 1000, **settings}
    return Engine.bilevel(upper, lower, hooks=hooks, **given)


def state(engine: Engine) -> list[Tensor]:
    return [t.detach().clone() for p in engine.problems for t in p.module.state_dict().values()]


def is_captured(engine: Engine) -> bool:
    recorded = engine._captured._recorded
    return recorded is not None and recorded.is_verified


def assert_same(found: Engine, expected: Engine) -> None:
    assert found.global_step == expected.global_step
    assert [p.count for p in found.problems] == [p.count for p in expected.problems]
    for a, b in zip(state(found), state(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
