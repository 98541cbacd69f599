"""Recorded steps taken again end where they ended, bit for bit."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import lower_view
from metaweight.problems.base.displacement import Displacement
from metaweight.problems.unrolling import replay
from support.unrolled import NAIVE, Setting, build

SETTINGS = {
    "momentum, clipping, accumulation": Setting(
        settings={"lr": 0.1, "momentum": 0.9}, clipping=0.1, accumulation=2, scheduler=True
    ),
    "learned": Setting(
        settings={"lr": 0.1, "momentum": 0.9}, learned=("lr", "momentum", "weight_decay")
    ),
    **{kind.__name__: Setting(kind, {"lr": 0.01}) for kind in NAIVE},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_ends_where_the_steps_ended(name: str) -> None:
    setting = SETTINGS[name]
    engine = build(setting)
    for _ in range(2 * setting.steps * setting.accumulation):
        engine.train_step()
    lower, view = engine.lower, lower_view(engine.lower)
    end = [p.detach().clone() for p in lower.module.parameters()]
    updates = list(lower.step_state.trajectory.updates)
    assert len(updates) == setting.steps
    with (
        view.evaluation(),
        Displacement(updates[0].start),
    ):
        replay(view, updates)
        found = [p.detach().clone() for p in lower.module.parameters()]
        with torch.no_grad():
            engine.upper.module.penalty.add_(0.5)
        replay(view, updates)
        other = [p.detach().clone() for p in lower.module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found, end, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(other, end, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(lower.module.parameters(), end, strict=True))
    assert all(p.grad is None for p in lower.module.parameters())
