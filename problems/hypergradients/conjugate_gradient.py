"""Implicit hypergradient with conjugate gradients for the inverse Hessian.

At a stationary point of the lower loss, ``(dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) x`` with ``H x = v``, solved by
conjugate gradients; exact after as many iterations as ``H`` has distinct eigenvalues when it is
positive definite.

Sources: Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016
(arXiv:1602.02355); Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019
(arXiv:1909.04630). The iteration is Hestenes and Stiefel's (1952).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import vectors
from ..errors import ConfigurationError
from .base import Hypergradient, Product, Status
from .products import curvature

if TYPE_CHECKING:
    from ..problem import Problem


@dataclass(frozen=True)
class ConjugateGradient(Hypergradient):
    """``-(∂²L/∂θ∂w) x`` with ``x`` from ``iterations`` conjugate-gradient steps on ``H x = v``.

    Args:
        iterations: Steps, each one Hessian-vector product. With 0 the product is zero.
    """

    iterations: int = 1

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ConfigurationError(
                f"ConjugateGradient(iterations={self.iterations}) must be at least 0."
            )

    def vjp(self, problem: Problem, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> Product:
        with curvature(problem) as second:
            solution = conjugate_gradient(second.hessian, vector, self.iterations)
            values = second.mixed(vectors.scale(solution, -1.0), wanted)
        return Product(values, Status("ConjugateGradient", iterations=self.iterations))


def conjugate_gradient(
    operator: Callable[[Sequence[Tensor]], list[Tensor]],
    right: Sequence[Tensor],
    iterations: int,
) -> list[Tensor]:
    """Solve ``A x = b`` for symmetric positive definite ``A`` given as a product.

    Once the residual is zero further iterations change nothing (decided on the device).
    """
    x = [torch.zeros_like(t) for t in right]
    residual = list(right)
    direction = list(right)
    squared = vectors.dot(residual, residual)
    for _ in range(iterations):
        image = operator(direction)
        step = _quotient(squared, vectors.dot(direction, image))
        x = vectors.add(x, vectors.scale(direction, step))
        residual = vectors.add(residual, vectors.scale(image, step), alpha=-1.0)
        previous, squared = squared, vectors.dot(residual, residual)
        direction = vectors.add(residual, vectors.scale(direction, _quotient(squared, previous)))
    return x


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(numerator == 0, numerator, numerator / denominator)
