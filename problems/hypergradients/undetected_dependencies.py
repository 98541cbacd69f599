"""Whether a lower loss depends on what its hypergradient is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from ..unrolling import owns_settings, owns_start

if TYPE_CHECKING:
    from ..problem import Problem


def reaches(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether the graph of ``loss`` ends in one of ``parameters``."""
    upper_parameters = set(parameters)
    if loss in upper_parameters:
        return True
    stack, seen = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) in upper_parameters:
            return True
        stack += [following for following, _ in node.next_functions]
    return False


def expect_dependence(problems: Iterable[Problem]) -> None:
    """Note whose parameters each lower problem's loss is to depend on, to be looked for once.

    Nothing is expected where a hypergradient is found from values, nor where an upper problem acts
    through the optimizer's settings or the start of a loop.
    """
    everyone = list(problems)
    for problem in everyone:
        problem.undetected_dependencies = []
    for problem in everyone:
        for path in problem.position.paths:
            for lower, above in pairwise(path[1:]):
                elsewhere = owns_settings(lower) or owns_start(lower)
                known = lower.hypergradient.zeroth_order or elsewhere
                if not known and above not in lower.undetected_dependencies:
                    lower.undetected_dependencies.append(above)


def look_for_dependence(problem: Problem, loss: Tensor) -> None:
    """Warn, once, where a recorded step's loss does not depend on a problem above it."""
    if not problem.undetected_dependencies or problem.trajectory.under_way is None:
        return
    expected, problem.undetected_dependencies = problem.undetected_dependencies, []
    for above in expected:
        if not reaches(loss, above.trainable_parameters()):
            warnings.warn(
                f"The loss of problem {problem.name!r} does not depend on the parameters of the "
                f"upper problem {above.name!r}, so that their hypergradient is zero. Use "
                f"self.{above.name} in its training_step, without detaching its output.",
                stacklevel=2,
            )
