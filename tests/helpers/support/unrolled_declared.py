"""Unrolled programs with declared weights, and what their upper problems receive."""

from __future__ import annotations

from typing import Any

import torch

from metaweight import (
    Engine,
)

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def gradients_of(engine: Engine, upper: Any, steps: int) -> list[torch.Tensor]:
    seen: dict[str, list[torch.Tensor]] = {}
    upper.grad_callback = lambda: seen.update(
        upper=[p.grad.clone() for p in upper.module.parameters()]
    )
    for _ in range(steps):
        engine.train_step()
    return seen["upper"]
