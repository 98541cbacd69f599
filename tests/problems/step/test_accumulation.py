"""Micro-batches averaged into one step equal one batch of all of them, hypergradient included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.programs import batches, mlp
from support.zoo import ColumnWeighed, Judge, over
from torch import Tensor, nn

from metaweight import (
    Config,
    ConjugateGradient,
    FiniteDifference,
    Neumann,
    Reweighting,
)

MICRO = 4


def whole(micro_batches: list[Any]) -> list[Any]:
    """Concatenate every ``MICRO`` batches into one."""
    groups = [micro_batches[i : i + MICRO] for i in range(0, len(micro_batches), MICRO)]
    return [tuple(torch.cat(parts) for parts in zip(*group, strict=True)) for group in groups]


def parameters_after(
    lower_data: list[Any],
    upper_data: list[Any],
    steps: int,
    lower_config: Config,
    upper_config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    net, weights = mlp(0, (5, 6, 3)), mlp(1, (1, 4, 1), nn.Sigmoid())
    lower = ColumnWeighed(
        "lower",
        lower_config,
        net,
        torch.optim.Adam(net.parameters(), lr=0.05),
        train_data_loader=lower_data,
    )
    upper = Judge(
        "upper",
        upper_config,
        weights,
        torch.optim.SGD(weights.parameters(), lr=1.0),
        train_data_loader=upper_data,
    )
    over(upper, lower, train_iters=steps).run()
    flat = [torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in (net, weights)]
    return flat[0], flat[1]


TYPES = {
    "darts": FiniteDifference(),
    "reweighting": Reweighting(),
    "forward mode": Reweighting(derivative="forward_mode"),
    "neumann": Neumann(iterations=3, alpha=0.1),
    "cg": ConjugateGradient(iterations=2, damping=1.0),
}


@pytest.mark.parametrize("name", TYPES)
def test_lower_micro_batches_equal_their_concatenation(name: str) -> None:
    micro = batches(4, 3 * MICRO, size=6)
    upper = batches(5, 2)
    # Elements of a batch enter only through their mean, so the two programs compute the same.
    settings = {"type": TYPES[name], "unroll_steps": 1}
    split = parameters_after(
        micro, upper, 3 * MICRO, Config(**settings, gradient_accumulation=MICRO)
    )
    at_once = parameters_after(whole(micro), upper, 3, Config(**settings))
    for ours, reference in zip(split, at_once, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)
    start = parameters_after(micro, upper, 0, Config())
    assert (split[1] - start[1]).norm() > 1e-4, "the upper problem did not move"


def test_upper_micro_batches_equal_their_concatenation_at_fixed_lower_parameters() -> None:
    """With a lower learning rate of zero all micro-batches meet the same lower parameters."""
    micro = batches(5, MICRO, size=6)
    lower = batches(4, 1)

    def upper_after(data: list[Any], steps: int, config: Config | None) -> Tensor:
        net, weights = mlp(0, (5, 6, 3)), mlp(1, (1, 4, 1), nn.Sigmoid())
        still = ColumnWeighed(
            "lower",
            Config(type=Reweighting(derivative="forward_mode")),
            net,
            torch.optim.SGD(net.parameters(), lr=0.0),
            train_data_loader=lower,
        )
        upper = Judge(
            "upper",
            config,
            weights,
            torch.optim.SGD(weights.parameters(), lr=1.0),
            train_data_loader=data,
        )
        over(upper, still, train_iters=steps).run()
        return torch.cat([p.detach().reshape(-1) for p in weights.parameters()])

    split = upper_after(micro, MICRO, Config(gradient_accumulation=MICRO))
    at_once = upper_after(whole(micro), 1, None)
    start = upper_after(micro, 0, None)
    torch.testing.assert_close(split, at_once, rtol=1e-10, atol=1e-10)
    assert (split - start).norm() > 1e-4


def test_unfinished_windows_change_nothing() -> None:
    micro, upper = batches(4, MICRO, size=6), batches(5, 1)
    config = Config(gradient_accumulation=MICRO)
    before = parameters_after(micro, upper, 0, config)
    after = parameters_after(micro, upper, MICRO - 1, config)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
