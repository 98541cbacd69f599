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
from ..base.settings import LeftOut, require_count, require_flag, require_number
from ..products.curvature import curvature
from ..products.linear_system import Answer, LinearSystem, products_of_one_graph
from .base import Hypergradient, LowerProblem, require_finite
from .kept_solution import batches_of, kept_solution, require_known_batches, state_of
from .product import ConvergedSolve, Product, Status
from .solve_advice import GROWTH, damping_advice, further_damping

Operator = Callable[[Sequence[Tensor]], list[Tensor]]

FLAT = 10.0
"""Curvature below this many machine epsilons times the largest curvature so far counts as zero."""
WORSE = 3.0
"""Residual above which a solution is warned of; that of a badly conditioned system passes 1 on the
way."""


@dataclass(frozen=True)
class ConjugateGradient(Hypergradient):
    """``-(∂²L/∂θ∂w) x`` with ``x`` from conjugate-gradient steps on ``(H + damping I) x = v``.

    Parameters of the upper loss that the lower loss does not depend on count as constants.

    The host waits for the device once, at the end; with a ``tolerance``, before every iteration.
    The status holds the residual of the ``x`` that was used.

    Args:
        iterations: Maximal number of iterations, each one Hessian-vector product. With 0 the
            product is zero.
        damping: Added to every eigenvalue of ``H``. If large enough, it makes the system positive
            definite; it makes the solution smaller.
        tolerance: Stop once ``||r|| <= tolerance ||v||`` for the residual ``r`` of the recursion.
        warm: Whether to start from the solution of the upper problem's last step. One more product.
        batches: ``"recorded"``: the batch of the lower problem's last step. ``"fresh"``: the next
            one of its loaders, which its parameters have not been trained on yet.

    A residual above 3 after several iterations is warned of once, with a damping for which they
    suffice: the Hessian of a batch often has a lower rank than ``v`` asks for. One of 10 or more is
    an error.

    Raises:
        HypergradientError: From :meth:`vjp`, for a direction without positive curvature or a
            residual of 10 or more, with a damping to try, or for numbers that are not finite.
    """

    iterations: int = LeftOut(1)
    damping: float = 0.0
    tolerance: float = 0.0
    warm: bool = False
    batches: str = "recorded"

    def __post_init__(self) -> None:
        name = "ConjugateGradient"
        require_count(name, "iterations", self.iterations, least=0)
        advice = "it is added to the Hessian's eigenvalues"
        require_number(name, "damping", self.damping, advice=advice)
        advice = "it is relative to the vector's norm, and 0 takes all iterations"
        require_number(name, "tolerance", self.tolerance, below=1.0, advice=advice)
        require_flag(name, "warm", self.warm)
        require_known_batches(name, self.batches)

    @property
    def keeps_state(self) -> bool:
        """Whether it starts from the last solution."""
        return self.warm

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(self.iterations + self.warm)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        (steps,) = batches_of(lower, self.batches)
        with curvature(lower, steps) as second:
            system = LinearSystem(second, second.reached(vector), self.damping)
            start = kept_solution(lower, system) if self.warm else None
            right = system.right if start is None else system.remainder(start)
            solve = solved(system.apply, right, self.iterations, self.tolerance, system.right)
            x = solve.solution if start is None else vectors.add(start, solve.solution)
            answer = system.answer(x, upper_parameters)
            require_finite(
                [*answer.values, answer.residual, solve.squared],
                lower,
                "ConjugateGradient",
                "look at the lower loss and its second derivatives, or raise damping if the "
                "solution is too large for the number format",
            )
            if bool(solve.flat):
                raise self._not_positive(lower, system, float(solve.curvature))
        status = Status(
            "ConjugateGradient",
            iterations=solve.iterations,
            residual=answer.residual,
            advice=self._advice(lower, solve, answer),
        )
        return Product(answer.values, status, state_of(system, x) if self.warm else None)

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(self.damping, "raise iterations (Config(cg_iterations=...))")

    def _not_positive(
        self, lower: LowerProblem, system: LinearSystem, found: float
    ) -> HypergradientError:
        damping = damping_advice(system, self.iterations)
        return HypergradientError(
            f"{self} met a direction of curvature {found:.3g} in the Hessian of problem "
            f"{lower.name!r} with its damping, but conjugate gradients need one that curves "
            f"upwards everywhere; raise damping above {damping:.3g}, or take fewer iterations. "
            "Parameters are as they were."
        )

    def _advice(self, lower: LowerProblem, solve: Solve, answer: Answer) -> str:
        """Return what to change about an ``x`` that is worse than none; empty if it is not.

        Raises:
            HypergradientError: With the same words, when it is far worse.
        """
        # After one iteration, the default as in Betty, that is usual; what was kept may be of
        # another time.
        if self.warm or self.iterations < 2 or not bool(answer.residual > WORSE):
            return ""
        damping = self.damping + further_damping(0.0, float(solve.stretch), self.iterations)
        advice = (
            f"{self} of problem {lower.name!r} leaves a residual of {float(answer.residual):.3g}, "
            "where none at all leaves 1: the Hessian of one batch, often of a lower rank than its "
            f"size, does not determine it. Raise damping to {damping:.3g}, for which "
            f"{self.iterations} iterations suffice, or average over batches by warm=True or SOBA()."
        )
        if bool(answer.residual >= GROWTH):
            raise HypergradientError(f"{advice} Parameters are as they were.")
        return advice


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
        stretch: The largest ``||Ap|| / ||p||``, at most the largest eigenvalue.
    """

    solution: list[Tensor]
    iterations: int
    flat: Tensor
    curvature: Tensor
    squared: Tensor
    stretch: Tensor


def conjugate_gradient(
    operator: Operator, right: Sequence[Tensor], iterations: int
) -> list[Tensor]:
    """Return the iterate of :func:`solved` alone."""
    return solved(operator, right, iterations).solution


def solved(
    operator: Operator,
    right: Sequence[Tensor],
    iterations: int,
    tolerance: float = 0.0,
    whole: Sequence[Tensor] | None = None,
) -> Solve:
    """Solve ``A x = b`` for symmetric positive definite ``A`` given as a product.

    The iterate stops changing, decided on the device, once the residual is within ``tolerance`` or
    rounding, or a direction ``p`` has no positive curvature ``pᵀAp``. Such a direction is reported
    unless the residual is below ``sqrt(eps) ||b||``, where rounding determines the direction.

    Args:
        operator: Returns the product with ``A``.
        right: ``b``.
        iterations: Maximal number of iterations.
        tolerance: Relative to the norm of ``whole``.
        whole: The vector of which ``b`` is what a start has left; ``b`` itself by default.
    """
    x = [torch.zeros_like(t) for t in right]
    residual, direction = list(right), list(right)
    squared = vectors.dot(residual, residual)
    start = squared if whole is None else vectors.dot(whole, whole)
    eps = max(torch.finfo(t.dtype).eps for t in right)
    goal, rounding = start * max(tolerance, eps) ** 2, start * eps
    active = squared > goal
    flat = torch.zeros_like(active)
    lowest, largest, stretch = (torch.zeros_like(start) for _ in range(3))
    done = 0
    while done < iterations and (tolerance == 0 or bool(active)):
        done += 1
        image = operator(direction)
        bend = vectors.dot(direction, image)
        length = vectors.dot(direction, direction)
        curvature = bend / length
        ratio = (vectors.dot(image, image) / length).sqrt()
        stretch = torch.where(active, torch.maximum(stretch, ratio), stretch)
        largest = torch.maximum(largest, curvature)
        stuck = active & (curvature <= FLAT * eps * largest)
        flat = flat | (stuck & (squared > rounding))
        lowest = torch.where(stuck, curvature, lowest)
        active = active & ~stuck
        step = torch.where(active, squared / bend, 0.0)
        x = vectors.add(x, vectors.scale(direction, step))
        residual = vectors.subtract(residual, vectors.scale(image, step))
        previous, squared = squared, vectors.dot(residual, residual)
        active = active & (squared > goal)
        turn = torch.where(active, squared / previous, 0.0)
        direction = vectors.add(residual, vectors.scale(direction, turn))
    return Solve(x, done, flat, lowest, squared, stretch)
