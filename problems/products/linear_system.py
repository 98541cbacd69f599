"""The linear system of implicit hypergradients.

At a stationary point of the lower loss, ``(dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) x`` with
``(H + damping I) x = v``. The solvers differ in how they compute ``x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from .curvature import Curvature


def products_of_one_graph(number: int) -> str:
    """Return in words the passes of a solver that takes ``number`` products with ``H``."""
    return f"1 forward and 1 backward pass with a graph, and {number + 1} backward passes of it"


class Answer(NamedTuple):
    """Results for an approximate solution ``x``.

    Attributes:
        values: ``-(∂²L/∂θ∂w) x``.
        remainder: ``r = v - (H + damping I) x``, computed from ``x`` and scaled like
            :attr:`LinearSystem.right`.
        residual: ``||r|| / ||v||``; 0 if ``v`` is 0.
    """

    values: list[Tensor]
    remainder: list[Tensor]
    residual: Tensor


class LinearSystem:
    """``(H + damping I) x = v``, with ``v`` scaled to a norm near 1.

    The scale is a power of two, which causes no rounding and keeps squares of very small or large
    vectors within range. Vectors have at least single precision.

    Attributes:
        right: The scaled ``v``.
        damping: As given.
        eps: The machine epsilon of ``right``.
    """

    def __init__(self, second: Curvature, vector: Sequence[Tensor], damping: float) -> None:
        self._second = second
        self.damping = damping
        wide = [_at_least_single(t) for t in vector]
        self._size = _power_of_two(wide)
        self.right = vectors.divide(wide, self._size)
        self.eps: float = max(torch.finfo(t.dtype).eps for t in wide)

    def hessian(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return ``H x``."""
        return [_at_least_single(t) for t in self._second.hessian(self._like_weights(x))]

    def apply(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return ``(H + damping I) x``."""
        return self._damped(self.hessian(x), x)

    def remainder(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return ``v - (H + damping I) x``."""
        return vectors.subtract(self.right, self.apply(x))

    def scaled(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return ``x``, given for the ``v`` as it is, in the scale and the types of ``right``."""
        return vectors.divide(
            [t.to(r.dtype) for t, r in zip(x, self.right, strict=True)], self._size
        )

    def unscaled(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Undo :meth:`scaled`, except for the types."""
        return vectors.scale(x, self._size)

    def answer(self, x: Sequence[Tensor], upper_parameters: Sequence[Tensor]) -> Answer:
        """Return the results for ``x``, from a single product."""
        hessian, mixed = self._second.both(self._like_weights(x), upper_parameters)
        image = self._damped([_at_least_single(t) for t in hessian], x)
        remainder = vectors.subtract(self.right, image)
        length = vectors.norm(self.right)
        residual = torch.where(length == 0, 0.0, vectors.norm(remainder) / length)
        return Answer(vectors.scale(mixed, -self._size), remainder, residual)

    def _damped(self, image: list[Tensor], x: Sequence[Tensor]) -> list[Tensor]:
        return vectors.add(image, x, alpha=self.damping) if self.damping else image

    def _like_weights(self, x: Sequence[Tensor]) -> list[Tensor]:
        return [t.to(w.dtype) for t, w in zip(x, self._second.weights, strict=True)]


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _power_of_two(vector: Sequence[Tensor]) -> Tensor:
    """Return a power of two within a factor of 2 of the largest entry; 1 for a zero vector."""
    largest = torch.stack([t.abs().amax() for t in vector if t.numel()]).amax()
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
