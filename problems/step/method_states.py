"""Commit the states of hypergradient methods with the upper problem's step, or drop them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.nested import leaves
from ..problem import Problem
from .plan import StepPlan


def settle_states(problem: Problem, plan: StepPlan, *, taken: bool) -> None:
    """Keep the states that the methods below ``problem`` proposed in its step, or forget them."""
    if plan.keeps_states:
        for edge in plan.through:
            edge.lower.step_state.method_states.settle(problem.name, taken=taken)


def has_proposals(problem: Problem) -> bool:
    """Return whether a method below ``problem`` has proposed a state."""
    return any(lower.step_state.method_states.proposed for lower in problem.position.lowers)


class ScaleDrop:
    """Tells whether the loss scaler refused an optimizer step, which it does by lowering its scale.

    Make it before the step. To ask it waits for the device, as the scaler does.
    """

    def __init__(self, problem: Problem) -> None:
        self._scale = None if problem.scaler is None else problem.scaler._scale
        self._before = None if self._scale is None else self._scale.clone()

    def __bool__(self) -> bool:
        if self._scale is None or self._before is None:
            return False
        return bool(self._scale < self._before)


def spoilt_by(state: Any, before: Any) -> Tensor:
    """Return NaN if a tensor of ``state`` that is not in ``before`` is not finite, else 0.

    Added to a product, it lets the step be refused that would keep such a state: the loss scaler
    and ``EngineConfig(non_finite=...)`` look at gradients.
    """
    known = set(map(id, leaves(before)))
    new = [
        t
        for t in leaves(state)
        if isinstance(t, Tensor) and id(t) not in known and t.is_floating_point() and t.numel()
    ]
    if not new:
        return torch.zeros(())
    total, *others = torch._foreach_norm(new, torch.inf)
    for norm in others:
        total = total + norm.to(total.device)
    return 0.0 * total


def scaled(problem: Problem, loss: Tensor) -> Tensor:
    """Return the loss times the loss scale, divided by the number of micro-batches."""
    result: Tensor = loss if problem.scaler is None else problem.scaler.scale(loss)
    accumulation = problem.config.gradient_accumulation
    return result / accumulation if accumulation > 1 else result


def unit(problem: Problem, like: Tensor) -> Tensor | None:
    """Return the number that :func:`scaled` multiplies a loss by; ``None`` for 1."""
    if problem.scaler is None and problem.config.gradient_accumulation == 1:
        return None
    return scaled(problem, torch.ones_like(like))
