"""Implicit hypergradient with a truncated Neumann series for the inverse Hessian.

At a stationary point of the lower loss, ``(dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) A⁻¹ v`` with
``A = H + damping I``, and for positive definite ``A`` and ``α < 2 / λ_max(A)`` ::

    A⁻¹ v = α Σ_{k=0}^{∞} (I - αA)^k v,    truncated after k = iterations

The truncation error is ``A⁻¹ (I - αA)^{iterations+1} v``: each term multiplies it by at most the
largest ``|1 - αλ|`` over the eigenvalues ``λ`` of ``A``.

Source: Lorraine, Vicol, Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
Differentiation", AISTATS 2020 (arXiv:1911.02590).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..base.settings import LeftOut, require_count, require_number
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import ConvergedSolve, Hypergradient, LowerProblem, Product, Status, require_finite
from .conjugate_gradient import solve_to_convergence

GROWTH = 10.0
"""The series counts as diverging when the norm of its next term is this many times the first's."""


@dataclass(frozen=True)
class Neumann(Hypergradient):
    """``-(∂²L/∂θ∂w) α Σ_{k=0}^{iterations} (I - α(H + damping I))^k v``.

    The residual in the status is the relative norm of the first omitted term,
    ``||(I - αA)^{iterations+1} v|| / ||v||``; it needs no further product. The host waits for the
    device once, at the end.

    Args:
        iterations: Terms beyond the first; each is one Hessian-vector product.
        alpha: ``α``. The series diverges when ``α`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.

    Raises:
        HypergradientError: From :meth:`vjp`, when the terms have grown 10 times or more, or are not
            finite. The terms of a convergent series never grow.
    """

    iterations: int = LeftOut(1)
    alpha: float = 1.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        require_count("Neumann", "iterations", self.iterations, least=0)
        advice = "the series needs it below 2 / λ_max of the Hessian"
        require_number("Neumann", "alpha", self.alpha, positive=True, advice=advice)
        advice = "it is added to the Hessian's eigenvalues"
        require_number("Neumann", "damping", self.damping, advice=advice)

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(
            self.damping,
            "raise iterations (Config(neumann_iterations=...)), or alpha below its bound",
        )

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(self.iterations)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        with curvature(lower) as second:
            system = LinearSystem(second, vector, self.damping)
            term, total = list(system.right), list(system.right)
            for _ in range(self.iterations):
                term = vectors.add(term, system.apply(term), alpha=-self.alpha)
                total = vectors.add(total, term)
            answer = system.answer(vectors.scale(total, self.alpha), upper_parameters)
        require_finite(
            [*answer.values, answer.residual],
            lower,
            "Neumann",
            f"its series may have diverged: choose alpha below 2 / λ_max of the Hessian, which was "
            f"{self.alpha:g}, or look at the lower loss",
        )
        if bool(answer.residual >= GROWTH):
            raise self._diverged(lower, term, answer.remainder, float(answer.residual))
        return Product(
            answer.values, Status("Neumann", iterations=self.iterations, residual=answer.residual)
        )

    def _diverged(
        self, lower: LowerProblem, last: list[Tensor], following: list[Tensor], growth: float
    ) -> HypergradientError:
        """Return the error; ``following = (I - αA) last`` gives the curvature along ``last``."""
        stretch = vectors.dot(last, following) / vectors.dot(last, last)
        curvature = float(1.0 - stretch) / self.alpha
        if curvature > 0:
            remedy = (
                f"choose alpha below 2 / λ_max(H + damping I), here at most {2 / curvature:.3g}"
            )
        else:
            remedy = f"H curves downwards: raise damping above {self.damping - curvature:.3g}"
        return HypergradientError(
            f"The series of {self} through problem {lower.name!r} diverges: its terms have grown "
            f"{growth:.3g} times; {remedy}. Parameters are as they were."
        )
