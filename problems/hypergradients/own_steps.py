"""Refusing lower problems whose steps are not their optimizer's."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ..base.errors import ConfigurationError

if TYPE_CHECKING:
    from ..problem import Problem


def require_optimizer_steps(problem: Problem, asked: str, instead: str) -> None:
    """Refuse a problem that steps by itself, and warn of callbacks that change its steps.

    Args:
        problem: The lower problem.
        asked: What was asked of it.
        instead: What to choose instead.

    Raises:
        ConfigurationError: When its steps are not those of a torch optimizer.
    """
    from ..problem import Problem  # noqa: PLC0415 (a problem knows its algorithms)

    kind = type(problem)
    if problem.optimizer is None or kind.custom_optimizer_step is not Problem.custom_optimizer_step:
        raise ConfigurationError(
            f"Problem {problem.name!r} asks for {asked} but takes steps of its own in "
            f"custom_optimizer_step, which are unknown; give it a torch optimizer, or {instead}."
        )
    for name in ("grad_callback", "param_callback"):
        if getattr(kind, name) is not getattr(Problem, name):
            warnings.warn(
                f"{kind.__name__}.{name} changes the steps of problem {problem.name!r} in a way "
                f"{asked} cannot see; it goes on as if it did nothing.",
                stacklevel=2,
            )
