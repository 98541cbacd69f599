"""Reverse-mode differentiation through steps, with the graph of one step at a time.

For states ``s_t = U_t(s_{t-1}, θ)`` and a cotangent ``λ_T`` of the last one, ::

    λ_{t-1} = (∂U_t/∂s)ᵀ λ_t,        (ds_T/dθ)ᵀ λ_T = Σ_t (∂U_t/∂θ)ᵀ λ_t

Source: Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible
Learning", ICML 2015 (arXiv:1502.03492), with recorded states instead of reversed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..base import vectors
from ..base.backward import products
from ..base.tensor_lists import checked_tensors, checked_vector
from ..kernels.twice_differentiable import differentiable_twice
from ..state.random_streams import RandomState

Cotangent = TypeVar("Cotangent")
Step = Callable[[list[Tensor]], Sequence[Tensor]]


class UnrolledProduct(NamedTuple):
    """The cotangents that :func:`unrolled_vjp` returns.

    Attributes:
        state: ``(ds_T/ds_0)ᵀ v``, one tensor per entry of the state.
        upper: ``(ds_T/dθ)ᵀ v``, one tensor per upper parameter.
    """

    state: list[Tensor]
    upper: list[Tensor]


def unrolled_vjp(
    step: Step | Sequence[Step],
    state: Sequence[Tensor],
    v: Sequence[Tensor],
    upper: Sequence[Tensor] = (),
) -> UnrolledProduct:
    """Return ``(ds_T/ds_0)ᵀ v`` and ``(ds_T/dθ)ᵀ v`` for ``T`` steps from ``s_0`` to ``s_T``.

    Memory holds all states and the graph of one step. Every step but the last is computed twice,
    with the same random numbers. The global random streams of torch, NumPy and Python end as if
    each step had been computed once. ::

        >>> rate = torch.tensor(0.1, requires_grad=True)
        >>> def descend(state):  # gradient descent on w² / 2
        ...     (w,) = state
        ...     return [w - rate * w]
        >>> product = unrolled_vjp([descend] * 3, [torch.tensor(2.0)], [torch.tensor(1.0)], [rate])
        >>> product.state  # 0.9³
        [tensor(0.7290)]
        >>> product.upper  # -3 · 2 · 0.9²
        [tensor(-4.8600)]

    Args:
        step: ``U``: returns the next state, with the same shapes as the present one, and may use
            ``upper``; or a sequence of such functions, one per step.
        state: ``s_0``: parameters and optimizer state, tensors of any shapes; integer tensors are
            constants. It is not modified.
        v: The cotangent ``λ_T`` of the last state; one tensor of the same shape per entry.
        upper: ``θ``, tensors that require a gradient.

    Returns:
        One tensor per entry of ``state`` and one per entry of ``upper``, zeros where ``s_T`` does
        not depend on it.

    Raises:
        TypeError: For anything but sequences of tensors, or a step that returns none.
        ValueError: For numbers or shapes of tensors that do not match, and for upper parameters
            that do not require a gradient.
    """
    asked = "unrolled_vjp"
    start = checked_tensors(asked, "state", state)
    cotangent = checked_vector(asked, v, start, "state")
    above = checked_tensors(asked, "upper", upper, require_grad=True)
    steps: list[Step] = [step] if callable(step) else list(step)
    before = _states(steps, [t.detach() for t in start])
    end: list[RandomState] = []

    def back(number: int, later: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        at, streams = before[number]
        streams.restore()
        found = _step_vjp(steps[number], at, later, above)
        # The last step is computed only once, here.
        end[:] = end or [RandomState(_device(at))]
        return found[: len(at)], [found[len(at) :]]

    try:
        below, total = reverse_sweep(back, len(steps), cotangent)
    finally:
        for streams in end:
            streams.restore()
    return UnrolledProduct(below, total or [torch.zeros_like(t) for t in above])


def reverse_sweep(
    back: Callable[[int, Cotangent], tuple[Cotangent, Sequence[list[Tensor]]]],
    steps: int,
    cotangent: Cotangent,
) -> tuple[Cotangent, list[Tensor]]:
    """Propagate a cotangent backwards through steps, from the last to the first.

    Args:
        back: Given the number of a step and the cotangent after it, returns the cotangent before
            it, and terms of the gradient by upper parameters.
        steps: Number of steps.
        cotangent: The cotangent after the last step.

    Returns:
        The cotangent before the first step, and the sum of all terms.
    """
    total: list[Tensor] = []
    for number in range(steps - 1, -1, -1):
        cotangent, terms = back(number, cotangent)
        for term in terms:
            total = vectors.add(total, term) if total else term
    return cotangent, total


def _states(steps: Sequence[Step], state: list[Tensor]) -> list[tuple[list[Tensor], RandomState]]:
    """Return the state and the random streams before each step."""
    before = []
    for number, step in enumerate(steps):
        before.append((state, RandomState(_device(state))))
        if number < len(steps) - 1:
            with torch.no_grad():
                state = [t.detach() for t in _next(step, [t.clone() for t in state])]
    return before


def _device(state: Sequence[Tensor]) -> torch.device:
    return state[0].device if state else torch.device("cpu")


def _step_vjp(
    step: Step, state: Sequence[Tensor], cotangent: Sequence[Tensor], upper: Sequence[Tensor]
) -> list[Tensor]:
    """Return the cotangents of the state before a step and of upper parameters."""
    with torch.enable_grad(), differentiable_twice(reads_values=True):
        at = [t.clone().requires_grad_(t.is_floating_point() or t.is_complex()) for t in state]
        after = _next(step, list(at))
    pairs = [(t, c) for t, c in zip(after, cotangent, strict=True) if t.requires_grad]
    inputs = [t for t in (*at, *upper) if t.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if pairs and inputs:
        outputs, seeds = zip(*pairs, strict=True)
        found = products(outputs, seeds, inputs)
    by_identity = {id(t): g for t, g in zip(inputs, found, strict=True)}
    every = [*at, *upper]
    return vectors.fill_none([by_identity.get(id(t)) for t in every], [t.detach() for t in every])


def _next(step: Step, state: list[Tensor]) -> list[Tensor]:
    after = checked_tensors("unrolled_vjp", "what step returned", step(state))
    if [t.shape for t in after] != [t.shape for t in state]:
        raise ValueError(
            "unrolled_vjp: step received a state of shapes "
            f"{[tuple(t.shape) for t in state]} and returned {[tuple(t.shape) for t in after]}; "
            "return the next state, entry by entry."
        )
    return after
