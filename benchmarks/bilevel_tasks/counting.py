"""Oracle calls: how many results a method asks for, of one batch each.

Each of ``∇_w G``, ``∇_θ G``, ``∇_w F``, ``∇_θ F`` and of the products ``(∂²G/∂w∂w) v`` and
``(∂²G/∂θ∂w) v`` counts one, as in benchmark_bilevel. A gradient that is computed only to be
differentiated does not count: it is not used. Seconds are measured beside, and count all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .problems import Batch, Loss, Problem


class Counter:
    """A number of calls."""

    def __init__(self) -> None:
        self.calls = 0


class _Passing(torch.autograd.Function):
    """The identity; each derivative that comes back through it counts, unless it gets a graph."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, counter: Counter) -> Tensor:
        ctx.counter = counter
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            ctx.counter.calls += 1
        return gradient, None


def counted(problem: Problem) -> tuple[Problem, Counter]:
    """Return the problem with losses that count calls, and their counter."""
    counter = Counter()

    def counting(loss: Loss) -> Loss:
        def found(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
            return loss(_Passing.apply(w, counter), _Passing.apply(theta, counter), batch)

        return found

    lower, upper = counting(problem.lower_loss), counting(problem.upper_loss)
    return replace(problem, lower_loss=lower, upper_loss=upper), counter
