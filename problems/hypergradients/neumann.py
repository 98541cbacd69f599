"""Implicit hypergradient with a truncated Neumann series for the inverse Hessian.

At a stationary point of the lower loss, ``(dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) H⁻¹ v``, and for
``α < 2 / λ_max(H)`` ::

    H⁻¹ v = α Σ_{k=0}^{∞} (I - αH)^k v,    truncated after k = iterations

Source: Lorraine, Vicol, Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
Differentiation", AISTATS 2020 (arXiv:1911.02590).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .. import vectors
from ..errors import ConfigurationError
from .base import Hypergradient, Product, Status
from .products import curvature

if TYPE_CHECKING:
    from ..problem import Problem


@dataclass(frozen=True)
class Neumann(Hypergradient):
    """``-(∂²L/∂θ∂w) α Σ_{k=0}^{iterations} (I - αH)^k v``.

    Args:
        iterations: Terms beyond the first; each is one Hessian-vector product.
        alpha: ``α``. The series diverges when ``α`` exceeds ``2 / λ_max(H)``.
    """

    iterations: int = 1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 0 or not 0 < self.alpha < float("inf"):
            raise ConfigurationError(
                f"Neumann(iterations={self.iterations}, alpha={self.alpha}) needs iterations of "
                "at least 0 and a positive, finite alpha."
            )

    def vjp(self, problem: Problem, vector: Sequence[Tensor], wanted: Sequence[Tensor]) -> Product:
        with curvature(problem) as second:
            term, total = list(vector), list(vector)
            for _ in range(self.iterations):
                term = vectors.add(term, second.hessian(term), alpha=-self.alpha)
                total = vectors.add(total, term)
            values = second.mixed(vectors.scale(total, -self.alpha), wanted)
        return Product(values, Status("Neumann", iterations=self.iterations))
