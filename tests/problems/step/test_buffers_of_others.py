"""Batch-norm in a lower network sees the lower problem's batches, each once, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.programs import batches, mlp
from support.zoo import ColumnWeighed, Judge, over
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    FiniteDifference,
    Neumann,
    Reweighting,
)

STEPS = 4


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
        ).double()


TYPES = {
    "darts": FiniteDifference(),
    "sama": SAMA(alpha=0.01),
    "reweighting": Reweighting(),
    "forward mode": Reweighting(derivative="forward_mode"),
    "neumann": Neumann(iterations=2, alpha=0.1),
    "cg": ConjugateGradient(iterations=2, damping=1.0),
}

LOWER_DATA = batches(4, STEPS)


def engine(kind: Any, upper_lr: float = 0.0, **settings: Any) -> Any:
    """With an upper learning rate of zero the lower trajectory can be followed by hand."""
    net, weights = network(), mlp(1, (1, 4, 1), nn.Sigmoid())
    config = Config(type=kind, **settings.pop("config", {}))
    lower = ColumnWeighed(
        "lower",
        config,
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=LOWER_DATA,
    )
    upper = Judge(
        "upper",
        None,
        weights,
        torch.optim.SGD(weights.parameters(), lr=upper_lr),
        train_data_loader=[(10 + 5 * x, y) for x, y in batches(5, 3)],
    )
    return over(upper, lower, train_iters=STEPS, **settings)


def plain_loop() -> nn.Module:
    net, weights = network(), mlp(1, (1, 4, 1), nn.Sigmoid())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for x, y in LOWER_DATA:
        optimizer.zero_grad()
        losses = F.cross_entropy(net(x), y, reduction="none")
        (weights(losses.detach().unsqueeze(1))[:, 0] * losses).mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("name", TYPES)
def test_running_statistics_are_those_of_a_plain_loop_over_the_lower_batches(name: str) -> None:
    program = engine(TYPES[name])
    program.run()
    reference = plain_loop().state_dict()
    assert program.lower.module[1].num_batches_tracked.item() == STEPS
    for key, value in program.lower.module.state_dict().items():
        torch.testing.assert_close(value, reference[key], rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", TYPES)
def test_an_upper_batch_leaves_the_lower_statistics_untouched(name: str) -> None:
    program = engine(TYPES[name], upper_lr=0.1)
    seen: list[dict[str, Tensor]] = []
    lower_step = program.lower.optimizer.step

    def noting(*args: Any) -> Any:
        result = lower_step(*args)
        seen.append({k: b.clone() for k, b in program.lower.module.named_buffers()})
        return result

    program.lower.optimizer.step = noting
    for _ in range(STEPS):
        program.global_step += 1
        program.train_step()
        for key, buffer in program.lower.module.named_buffers():
            assert torch.equal(buffer, seen[-1][key]), key


def test_a_step_taken_again_after_a_roll_back_is_counted_once() -> None:
    program = engine("darts", upper_lr=0.1, roll_back=True)
    program.run()
    assert program.lower.module[1].num_batches_tracked.item() == STEPS


def test_an_unrolled_and_rolled_back_loop_counts_the_step_that_stays() -> None:
    program = engine("darts", upper_lr=0.1, roll_back=True, config={"unroll_steps": 2})
    program.run()
    # Of each loop of two steps the last one, taken again from the loop's start, is left.
    assert program.lower.module[1].num_batches_tracked.item() == STEPS // 2


def test_an_upper_network_keeps_its_own_statistics() -> None:
    program = engine("darts")
    weights = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    program.upper.module = weights
    program.upper.optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    program.run()
    # It is evaluated within the lower problem's steps and replays only, none of its own.
    assert weights[1].num_batches_tracked.item() == 0
