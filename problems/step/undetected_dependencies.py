"""Warnings of lower losses that do not depend on an upper problem."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor

from ..problem import Problem
from ..products.dependence import reaches
from ..unrolling import owns_settings, owns_start


def expect_dependence(problems: Iterable[Problem]) -> None:
    """Store which upper parameters each lower loss must depend on, to be checked once.

    Zeroth-order methods, learned optimizer settings and learned starts of loops need no such
    dependence.
    """
    everyone = list(problems)
    expected: dict[Problem, dict[Problem, None]] = {problem: {} for problem in everyone}
    for problem in everyone:
        for path in problem.position.paths:
            for lower, above in pairwise(path[1:]):
                elsewhere = owns_settings(lower) or owns_start(lower)
                if not lower.hypergradient.zeroth_order and not elsewhere:
                    expected[lower][above] = None
    for problem, uppers in expected.items():
        problem.step_state.expect_dependence_on(uppers)


def look_for_dependence(problem: Problem, loss: Tensor) -> None:
    """Warn once if a recorded step's loss does not depend on an upper problem."""
    state = problem.step_state
    if not state.undetected_dependencies or state.trajectory.under_way is None:
        return
    expected = state.undetected_dependencies
    state.expect_dependence_on(())
    for above in expected:
        if not reaches(loss, above.trainable_parameters()):
            warnings.warn(
                f"The loss of problem {problem.name!r} does not depend on the parameters of the "
                f"upper problem {above.name!r}, so that their hypergradient is zero. Use "
                f"self.{above.name} in its training_step, without detaching its output.",
                stacklevel=2,
            )
