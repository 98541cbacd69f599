"""Measurements at displaced parameters, which are restored bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..base import vectors
from ..base.displacement import Displaced
from ..kernels.precision import difference_step

Measured = TypeVar("Measured")

TINY = 1e-15
"""Length that a shorter vector counts as, so that one of zeros displaces nothing."""


def inverse_step(
    vector: Sequence[Tensor], alpha: float, dtype: torch.dtype, order: int = 2
) -> Tensor:
    """Return ``1 / eps`` for a displacement ``eps v`` of length ``alpha``, longer in 16 bits.

    Args:
        vector: ``v``.
        alpha: The length in single precision or better.
        dtype: The type in which the loss is computed.
        order: Order of the difference's error in ``eps``.
    """
    step = difference_step(alpha, dtype, order)
    length = vectors.norm(vector).clamp_min_(TINY)
    # A number that multiplies a tensor without dimensions is made a tensor first, which takes as
    # long as the product; alpha is none.
    return length.add_(length, alpha=1 / step - 1) if 1e-30 < step < 0.5 else length.div_(step)


def measure_both_sides(
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
    ahead: Callable[[], Measured],
    behind: Callable[[], Measured],
    *,
    stay: bool = False,
) -> tuple[Measured, Measured]:
    """Measure with the parameters displaced by ``eps v``, then by ``-eps v``.

    Args:
        parameters: Displaced in place.
        vector: ``v``, one tensor per parameter; a spare one is emptied.
        inverse_eps: ``1 / eps``.
        ahead: Measures at ``+eps v``.
        behind: Measures at ``-eps v``.
        stay: Leave the parameters at ``-eps v``.
    """
    with Displaced(parameters, vector, inverse_eps) as place:
        first = ahead()
        place.mirror()
        second = behind()
        if stay:
            place.stay()
    return first, second


def measure_one_side(
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
    measure: Callable[[], Measured],
) -> Measured:
    """Measure with the parameters displaced by ``eps v``; a spare ``v`` is emptied."""
    with Displaced(parameters, vector, inverse_eps):
        return measure()
