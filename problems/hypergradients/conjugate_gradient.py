"""Implicit hypergradient with conjugate gradients for the inverse Hessian.

At a stationary point of the lower loss, ``(dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) x`` with
``(H + damping I) x = v``. The ``k``-th iterate minimises ``½ xᵀ(H + damping I)x - vᵀx`` over the
span of ``v, Hv, …, H^{k-1}v``. In exact arithmetic it takes as many iterations as ``H`` has
distinct eigenvalues; rounding adds more when ``H`` is badly conditioned. ``H + damping I`` must be
positive definite.

Sources: Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016
(arXiv:1602.02355); Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019
(arXiv:1909.04630). The iteration is Hestenes and Stiefel's (1952).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..base.settings import LeftOut, require_count, require_number
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import ConvergedSolve, Hypergradient, LowerProblem, Product, Status, require_finite

Operator = Callable[[Sequence[Tensor]], list[Tensor]]

FLAT = 10.0
"""Curvature below this many machine epsilons times the largest curvature so far counts as zero."""


@dataclass(frozen=True)
class ConjugateGradient(Hypergradient):
    """``-(∂²L/∂θ∂w) x`` with ``x`` from conjugate-gradient steps on ``(H + damping I) x = v``.

    The host waits for the device once, at the end; with a ``tolerance``, before every iteration.
    The status holds the residual of the ``x`` that was used.

    Args:
        iterations: Maximal number of iterations, each one Hessian-vector product. With 0 the
            product is zero.
        damping: Added to every eigenvalue of ``H``. If large enough, it makes the system positive
            definite; it makes the solution smaller.
        tolerance: Stop once ``||r|| <= tolerance ||v||`` for the residual ``r`` of the recursion.

    Raises:
        HypergradientError: From :meth:`vjp`, for a direction without positive curvature, or for
            numbers that are not finite.
    """

    iterations: int = LeftOut(1)
    damping: float = 0.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        name = "ConjugateGradient"
        require_count(name, "iterations", self.iterations, least=0)
        advice = "it is added to the Hessian's eigenvalues"
        require_number(name, "damping", self.damping, advice=advice)
        advice = "it is relative to the vector's norm, and 0 takes all iterations"
        require_number(name, "tolerance", self.tolerance, below=1.0, advice=advice)

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(self.iterations)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        with curvature(lower) as second:
            system = LinearSystem(second, vector, self.damping)
            solve = solved(system.apply, system.right, self.iterations, self.tolerance)
            answer = system.answer(solve.solution, upper_parameters)
        require_finite(
            [*answer.values, answer.residual, solve.squared],
            lower,
            "ConjugateGradient",
            "look at the lower loss and its second derivatives, or raise damping if the solution "
            "is too large for the number format",
        )
        if bool(solve.flat):
            raise self._not_positive(lower, float(solve.curvature))
        return Product(
            answer.values,
            Status("ConjugateGradient", iterations=solve.iterations, residual=answer.residual),
        )

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(self.damping, "raise iterations (Config(cg_iterations=...))")

    def _not_positive(self, lower: LowerProblem, found: float) -> HypergradientError:
        return HypergradientError(
            f"{self} met a direction of curvature {found:.3g} in the Hessian of problem "
            f"{lower.name!r} with its damping, but conjugate gradients need one that curves "
            f"upwards everywhere; raise damping above {self.damping + max(-found, 0.0):.3g}, or "
            "take fewer iterations. Parameters are as they were."
        )


def solve_to_convergence(damping: float, remedy: str) -> ConvergedSolve:
    """Return conjugate gradients that stop at a residual of 1e-10, after 500 iterations at most."""
    return ConvergedSolve(
        ConjugateGradient(iterations=500, damping=damping, tolerance=1e-10), remedy
    )


class Solve(NamedTuple):
    """Result of conjugate gradients.

    Attributes:
        solution: The last iterate; if a direction had no positive curvature, the one before it.
        iterations: Number of products with ``A``.
        flat: Whether there was a direction without positive curvature, a 0-dim tensor.
        curvature: ``pᵀAp / pᵀp`` of that direction.
        squared: ``||r||²`` of the residual of the recursion.
    """

    solution: list[Tensor]
    iterations: int
    flat: Tensor
    curvature: Tensor
    squared: Tensor


def conjugate_gradient(
    operator: Operator, right: Sequence[Tensor], iterations: int
) -> list[Tensor]:
    """Return the iterate of :func:`solved` alone."""
    return solved(operator, right, iterations).solution


def solved(
    operator: Operator, right: Sequence[Tensor], iterations: int, tolerance: float = 0.0
) -> Solve:
    """Solve ``A x = b`` for symmetric positive definite ``A`` given as a product.

    The iterate stops changing, decided on the device, once the residual is within ``tolerance`` or
    rounding, or a direction ``p`` has no positive curvature ``pᵀAp``. Such a direction is reported
    unless the residual is below ``sqrt(eps) ||b||``, where rounding determines the direction.
    """
    x = [torch.zeros_like(t) for t in right]
    residual, direction = list(right), list(right)
    squared = start = vectors.dot(residual, residual)
    eps = max(torch.finfo(t.dtype).eps for t in right)
    goal, rounding = start * max(tolerance, eps) ** 2, start * eps
    active = squared > goal
    flat = torch.zeros_like(active)
    lowest, largest = torch.zeros_like(start), torch.zeros_like(start)
    done = 0
    while done < iterations and (tolerance == 0 or bool(active)):
        done += 1
        image = operator(direction)
        bend = vectors.dot(direction, image)
        curvature = bend / vectors.dot(direction, direction)
        largest = torch.maximum(largest, curvature)
        stuck = active & (curvature <= FLAT * eps * largest)
        flat = flat | (stuck & (squared > rounding))
        lowest = torch.where(stuck, curvature, lowest)
        active = active & ~stuck
        step = torch.where(active, squared / bend, 0.0)
        x = vectors.add(x, vectors.scale(direction, step))
        residual = vectors.add(residual, vectors.scale(image, step), alpha=-1.0)
        previous, squared = squared, vectors.dot(residual, residual)
        active = active & (squared > goal)
        turn = torch.where(active, squared / previous, 0.0)
        direction = vectors.add(residual, vectors.scale(direction, turn))
    return Solve(x, done, flat, lowest, squared)
