"""Optimizers go on from a saved state as they would have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from metaweight.problems.state.buffers import Snapshot
from metaweight.problems.state.optimizer_state import load_optimizer
from support.small import Point

OPTIMIZERS: dict[str, Any] = {
    "nadam": lambda p: torch.optim.NAdam(p, 0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
}


def steps(module: Point, optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        module.w.grad = (module.w - 1.0).detach()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_goes_on_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    """torch's own loading rounds or widens what NAdam keeps in single precision."""
    module, other = Point(0.1, 3.0).to(dtype), Point(0.0, 0.0).to(dtype)
    optimizer = OPTIMIZERS[kind](module.parameters())
    steps(module, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        other.w.copy_(module.w)
    loaded = OPTIMIZERS[kind](other.parameters())
    load_optimizer(loaded, saved)
    steps(module, optimizer, 5)
    steps(other, loaded, 5)
    assert torch.equal(module.w, other.w)
    # What was loaded is a copy.
    again = OPTIMIZERS[kind](Point(0.0, 0.0).to(dtype).parameters())
    load_optimizer(again, saved)
    for a, b in zip(
        again.state_dict()["state"][0].values(), saved["state"][0].values(), strict=True
    ):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_snapshot_puts_back_every_number_as_it_was(kind: str) -> None:
    module = Point(0.1, 3.0)
    optimizer = OPTIMIZERS[kind](module.parameters())
    steps(module, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict()["state"][0])
    snapshot = Snapshot(module.parameters(), [], optimizer, None)
    steps(module, optimizer, 2)
    snapshot.restore(optimizer, None)
    for name, value in optimizer.state_dict()["state"][0].items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
