"""What to change about a linear solve that diverges or does not get far, with numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..products.eigenvalues import extreme_eigenvalues
from ..products.linear_system import Answer, LinearSystem
from .base import LowerProblem, require_finite

GROWTH = 10.0
"""A series or a solution counts as diverging when its residual has become this many times ``v``."""
MARGIN = 1.05
"""Estimates of extreme eigenvalues lie between them; what is advised goes this much further."""


class Series(Protocol):
    """A method with a step size ``alpha`` that bounds its series."""

    @property
    def alpha(self) -> float:
        """The step size."""


def require_bounded(
    method: Series, lower: LowerProblem, system: LinearSystem, answer: Answer, growth: Tensor
) -> None:
    """Refuse a series whose terms have grown or are not finite. The host waits for the device.

    Args:
        method: The method.
        lower: The lower problem.
        system: Its system.
        answer: What the series gave.
        growth: The last term's norm relative to the first's.

    Raises:
        HypergradientError: With the largest ``alpha`` that converges, or the damping.
    """
    name = type(method).__name__

    def advice() -> str:
        return step_advice(system, "alpha", method.alpha)

    def not_finite() -> str:
        return f"its series may have diverged: {advice()}, which was {method.alpha:g}"

    require_finite([*answer.values, answer.residual], lower, name, not_finite)

    def error() -> HypergradientError:
        return HypergradientError(
            f"The series of {method} through problem {lower.name!r} diverges: its terms have grown "
            f"{float(growth):.3g} times; {advice()}. Parameters are as they were."
        )

    lower.refuse_if(growth >= GROWTH, error)


def require_converging(
    method: object,
    setting: str,
    lower: LowerProblem,
    system: LinearSystem,
    x: Sequence[Tensor],
    answer: Answer,
) -> None:
    """Refuse a kept solution that diverges or is not finite. The host waits for the device.

    Args:
        method: The method.
        setting: Name of its step size.
        lower: The lower problem.
        system: Its system.
        x: The solution.
        answer: What the product gave for it.

    Raises:
        HypergradientError: With the largest step size that converges, or the damping.
    """
    step: float = getattr(method, setting)

    def advice() -> str:
        return step_advice(system, setting, step)

    values = [*answer.values, answer.residual]
    require_finite(values, lower, type(method).__name__, advice)
    image = vectors.subtract(system.right, answer.remainder)
    # The residual of a sound one is large too where v has become small; but no vector is stretched
    # by more than the largest eigenvalue, nor against its direction.
    too_long = step * vectors.norm(image) > 2.0 * vectors.norm(x)
    downwards = vectors.dot(x, image) < 0

    def error() -> HypergradientError:
        return HypergradientError(
            f"The solution that {method} keeps for problem {lower.name!r} diverges: its residual "
            f"is {float(answer.residual):.3g}; {advice()}. Parameters are as they were."
        )

    lower.refuse_if((too_long | downwards) & (answer.residual >= GROWTH), error)


def step_advice(system: LinearSystem, setting: str, step: float) -> str:
    """Return the largest step size with which ``x + step (v - A x)`` converges, and the damping if
    ``A`` curves downwards.

    It takes products with ``A``, so call it only where an error is raised.

    Args:
        system: The system that diverged.
        setting: Name of the step size.
        step: The step size.
    """
    low, high = extreme_eigenvalues(system.apply, system.right)
    if math.isnan(high):
        return "look at the lower loss and its second derivatives"
    low, high = MARGIN * min(low, 0.0), MARGIN * max(high, 0.0)
    if low < -1e-6 * high:
        more = f"H curves downwards: raise damping above {system.damping - low:.3g}"
        high -= low
        if step * high < 2:
            return more
        return f"{more}, and choose {setting} of at most {2 / high:.3g}"
    if high == 0:
        return "look at the lower loss and its second derivatives"
    return f"choose {setting} below 2 / λ_max(H + damping I), here at most {2 / high:.3g}"


def damping_advice(system: LinearSystem, iterations: int) -> float:
    """Return a damping with which some iterations of conjugate gradients solve the system.

    It takes products with ``A``, so call it only where an error is raised.
    """
    low, high = extreme_eigenvalues(system.apply, system.right)
    return system.damping + further_damping(low, high, iterations)


def further_damping(low: float, high: float, iterations: int) -> float:
    """Return ``d`` such that conjugate gradients halve the residual of ``A + d I`` in a number of
    iterations, for eigenvalues of ``A`` from ``low`` to ``high``, by the bound

    ``||r_k|| <= 2 √κ ((√κ - 1) / (√κ + 1))^k ||r_0||`` for the condition number ``κ``.
    """
    low, high = MARGIN * min(low, 0.0), MARGIN * max(high, 0.0)
    least, most = 1.0, 1e8
    for _ in range(60):
        root = math.sqrt(least * most)
        if 2 * root * ((root - 1) / (root + 1)) ** max(iterations, 1) <= 0.5:
            least = root
        else:
            most = root
    condition = least * least
    return (high - condition * low) / (condition - 1)
