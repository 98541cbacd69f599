"""Description of a method, and its number of iterations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .case import Case
from .programs import Gradient

Build = Callable[[Case, int], Gradient]

NEUMANN_ITERATIONS = 1000
MOST_STEPS = 1000
ADAM_STEPS, ADAM_LR = 300, 0.03

IDENTITY = "1 for H⁻¹"
ADAM = "Adam's Jacobian for H⁻¹"
NEUMANN = "H⁻¹ by K + 1 terms, α = 1/λ_max"
CG = "H⁻¹ by K steps"
UNROLLED = "derivative of K heavy-ball steps from 0"


@dataclass(frozen=True)
class Method:
    """One method on one library.

    Attributes:
        library: Name of the library.
        name: Name of the method.
        computes: The quantity it computes, in words.
        build: Returns a function that computes the gradient, given the case and ``iterations``.
        iterations: Iterations of its main measurement; ``None`` where there is nothing to choose.
        curve: Whether its error is drawn against the iterations.
    """

    library: str
    name: str
    computes: str
    build: Build
    iterations: int | None = None
    curve: bool = False

    @property
    def label(self) -> str:
        """Library and method."""
        return f"{self.library}: {self.name}"


def cg_iterations(case: Case) -> int:
    """Return the iterations for an error of 1e-8 in exact arithmetic, at most 4 × the dimension."""
    return min(4 * len(case.solution), math.ceil(10 * case.condition**0.5))


def unroll_steps(case: Case) -> int:
    """Return the heavy-ball steps for an error of about 1e-6 on a quadratic."""
    return min(MOST_STEPS, math.ceil(8 * (case.steepest / case.smallest) ** 0.5) + 20)
