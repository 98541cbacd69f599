"""Adjoints of adaptive optimizers' steps where parameters have 16 bits."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.setup.preparation import prepare_recording
from support.naive import cosine
from support.reweighting import Plain, program
from torch import Tensor

from metaweight import Config, Unroll

OPTIMIZERS = [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam]


def hypergradient(
    dtype: torch.dtype, optimizer: type[torch.optim.Optimizer], clipping: float, steps: int
) -> list[Tensor]:
    config = Config(type=Unroll(), unroll_steps=steps, gradient_clipping=clipping)
    engine = program(Plain, config=config, dtype=dtype, batch_norm=False)
    lower, upper = engine.classifier, engine.judge
    # Adagrad and RMSprop divide by small numbers at first, whose derivative 8 bits do not resolve.
    more = {"eps": 1e-2} if optimizer in (torch.optim.RMSprop, torch.optim.Adagrad) else {}
    lower.set_optimizer(optimizer(lower.module.parameters(), lr=0.01, **more))
    prepare_recording(lower)
    seen: list[Tensor] = []
    upper.grad_callback = lambda: seen.extend(p.grad.clone() for p in upper.module.parameters())
    for _ in range(steps):
        engine.train_step()
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clipping", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 3])
def test_follows_the_one_in_double_precision(
    optimizer: type[torch.optim.Optimizer], clipping: float, steps: int
) -> None:
    """bf16 has 8 bits, in which Adam's ``1 - β₂`` is 0; each number is off by up to 2^-8."""
    exact = hypergradient(torch.float64, optimizer, clipping, steps)
    found = hypergradient(torch.bfloat16, optimizer, clipping, steps)
    assert all(t.dtype == torch.bfloat16 for t in found)
    assert cosine(found, exact) > 0.999
