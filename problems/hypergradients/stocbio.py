"""Implicit hypergradient with a Neumann series whose terms have batches of their own.

With ``A_i = H_i + damping I`` of independent batches ``1, …, K``, and one more batch for the last
product, ::

    r_0 = v,    r_i = (I - alpha A_i) r_{i-1},    (dw*/dθ)ᵀ v  ≈  -(∂²L/∂θ∂w) alpha Σ_{i=0}^{K} r_i

The expectation of the sum is the series of the mean Hessian, since its factors are independent;
powers of one batch's Hessian have another. Nothing is kept from step to step.

Source: Ji, Yang, Liang, "Bilevel optimization: convergence analysis and enhanced design" (stocBiO),
ICML 2021 (arXiv:2010.07962). The lower problem's steps, which start where the last ones ended there
too, are ``Config(unroll_steps=...)`` steps of its optimizer; batch sizes, which differ between
terms there, are those of its loaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.settings import require_count, require_number
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import Hypergradient, LowerProblem
from .conjugate_gradient import solve_to_convergence
from .kept_solution import batches_of
from .product import ConvergedSolve, Product, Status
from .solve_advice import require_bounded


@dataclass(frozen=True)
class StocBiO(Hypergradient):
    """``-(∂²L/∂θ∂w) alpha Σ_{i=0}^{iterations} Π_{j≤i} (I - alpha (H_j + damping I)) v``.

    Each product takes the next batch of the lower problem's loaders, ``iterations + 1`` in all. The
    host waits for the device once, at the end.

    Args:
        iterations: Terms beyond the first; each is one Hessian-vector product.
        alpha: The series diverges when it exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.

    Raises:
        HypergradientError: From :meth:`vjp`, when the terms have grown 10 times or more, or are not
            finite.
    """

    iterations: int = 10
    alpha: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        require_count("StocBiO", "iterations", self.iterations, least=0)
        advice = "the series needs it below 2 / λ_max of the Hessian"
        require_number("StocBiO", "alpha", self.alpha, positive=True, advice=advice)
        advice = "it is added to the Hessian's eigenvalues"
        require_number("StocBiO", "damping", self.damping, advice=advice)

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(self.damping, "raise iterations, or alpha below its bound")

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return f"{self.iterations + 1} times {products_of_one_graph(0)}"

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        term: list[Tensor] = []
        total: list[Tensor] = []
        for number, batch in enumerate(batches_of(lower, "fresh", self.iterations + 1)):
            with curvature(lower, batch) as second:
                system = LinearSystem(second, vector, self.damping)
                term, total = term or system.right, total or system.right
                if number < self.iterations:
                    term = vectors.add(term, system.apply(term), alpha=-self.alpha)
                    total = vectors.add(total, term)
                    continue
                answer = system.answer(vectors.scale(total, self.alpha), upper_parameters)
                growth = vectors.norm(term) / vectors.norm(system.right).clamp(min=system.eps)
                require_bounded(self, lower, system, answer, growth)
        status = Status("StocBiO", iterations=self.iterations, residual=answer.residual)
        return Product(answer.values, status)
