"""What methods share that take gradient steps on their linear system, kept from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.settings import require_number
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import Hypergradient, LowerProblem
from .conjugate_gradient import solve_to_convergence
from .kept_solution import kept_solution
from .product import ConvergedSolve


@dataclass(frozen=True)
class SingleLoop(Hypergradient):
    """A method whose ``x`` moves by ``lr (v - (H + damping I) x)`` in every step.

    Args:
        lr: Step size of ``x``. It diverges when ``lr`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.
    """

    lr: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        advice = "it has to be below 2 / λ_max of the Hessian"
        require_number(name, "lr", self.lr, positive=True, advice=advice)
        advice = "it is added to the Hessian's eigenvalues"
        require_number(name, "damping", self.damping, advice=advice)

    @property
    def keeps_state(self) -> bool:
        """It keeps ``x``."""
        return True

    def converged_solve(self) -> ConvergedSolve:
        return solve_to_convergence(
            self.damping, "it does in the course of a run; raise lr for fewer steps"
        )

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return products_of_one_graph(0)

    def start(self, lower: LowerProblem, system: LinearSystem) -> list[Tensor]:
        """Return the kept ``x``, scaled like ``system.right``; at first ``lr v``, a step from 0."""
        kept = kept_solution(lower, system)
        return vectors.scale(system.right, self.lr) if kept is None else kept
