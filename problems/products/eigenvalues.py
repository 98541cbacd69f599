"""Estimates of the extreme eigenvalues of an operator, for messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import vectors


class Extremes(NamedTuple):
    """The least and the largest eigenvalue; NaN where products are not finite."""

    least: float
    largest: float


def extreme_eigenvalues(
    operator: Callable[[Sequence[Tensor]], list[Tensor]],
    like: Sequence[Tensor],
    products: int = 30,
) -> Extremes:
    """Estimate the extreme eigenvalues of a symmetric operator by Lanczos steps from a random
    vector; both estimates lie between the two. The host waits for the device at every step.

    Args:
        operator: Returns its product with a vector.
        like: Tensors of the shapes, types and devices of a vector.
        products: Number of products.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.rand(t.shape, generator=generator, device="cpu").sub_(0.5).to(t.device, t.dtype)
        for t in like
    ]
    direction = vectors.divide(drawn, vectors.norm(drawn))
    before, coupling = [torch.zeros_like(t) for t in like], 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(products):
        image = operator(direction)
        diagonal.append(float(vectors.dot(direction, image)))
        image = vectors.add(image, direction, alpha=-diagonal[-1])
        image = vectors.add(image, before, alpha=-coupling)
        coupling = float(vectors.norm(image))
        size = max(map(abs, [*diagonal, *beside]))
        if not math.isfinite(coupling) or coupling <= 1e-6 * size:
            break
        beside.append(coupling)
        before, direction = direction, vectors.divide(image, coupling)
    if not all(map(math.isfinite, [*diagonal, coupling])):
        return Extremes(math.nan, math.nan)
    return _of_tridiagonal(diagonal, beside[: len(diagonal) - 1])


def _of_tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> Extremes:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if beside:
        line = torch.diag(torch.tensor(beside, dtype=torch.float64, device="cpu"), 1)
        matrix = matrix + line + line.T
    values = torch.linalg.eigvalsh(matrix)
    return Extremes(float(values[0]), float(values[-1]))
