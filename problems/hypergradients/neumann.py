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
from ..base.settings import LeftOut, require_count, require_flag, require_number
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import Hypergradient, LowerProblem
from .conjugate_gradient import solve_to_convergence
from .kept_solution import batches_of, kept_solution, require_known_batches, state_of
from .product import ConvergedSolve, Product, Status
from .solve_advice import require_bounded, require_converging


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
        warm: Whether to start from the solution ``x_0`` of the upper problem's last step: the
            series is then that of ``v - A x_0``, and added to ``x_0``. One more product.
        batches: ``"recorded"``: the batch of the lower problem's last step. ``"fresh"``: the next
            one of its loaders, which its parameters have not been trained on yet.

    Raises:
        HypergradientError: From :meth:`vjp`, when the terms have grown 10 times or more, or are not
            finite, with the largest ``alpha`` that converges. The terms of a convergent series
            never grow.
    """

    iterations: int = LeftOut(1)
    alpha: float = 1.0
    damping: float = 0.0
    warm: bool = False
    batches: str = "recorded"

    def __post_init__(self) -> None:
        require_count("Neumann", "iterations", self.iterations, least=0)
        advice = "the series needs it below 2 / λ_max of the Hessian"
        require_number("Neumann", "alpha", self.alpha, positive=True, advice=advice)
        advice = "it is added to the Hessian's eigenvalues"
        require_number("Neumann", "damping", self.damping, advice=advice)
        require_flag("Neumann", "warm", self.warm)
        require_known_batches("Neumann", self.batches)

    @property
    def keeps_state(self) -> bool:
        """Whether it starts from the last solution."""
        return self.warm

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(
            self.damping,
            "raise iterations (Config(neumann_iterations=...)), or alpha below its bound",
        )

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(self.iterations + self.warm)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        (steps,) = batches_of(lower, self.batches)
        with curvature(lower, steps) as second:
            system = LinearSystem(second, vector, self.damping)
            start = kept_solution(lower, system) if self.warm else None
            term = list(system.right) if start is None else system.remainder(start)
            total = list(term)
            for _ in range(self.iterations):
                term = vectors.add(term, system.apply(term), alpha=-self.alpha)
                total = vectors.add(total, term)
            x = vectors.scale(total, self.alpha)
            x = x if start is None else vectors.add(start, x)
            answer = system.answer(x, upper_parameters)
            if start is None:
                require_bounded(self, lower, system, answer, answer.residual)
            else:
                require_converging(self, "alpha", lower, system, x, answer)
        status = Status("Neumann", iterations=self.iterations, residual=answer.residual)
        return Product(answer.values, status, state_of(system, x) if self.warm else None)
