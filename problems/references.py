"""Other problems that one is told by name when it is made, and looks up when it steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base.errors import ConfigurationError, GraphError
from .base.settings import shown

if TYPE_CHECKING:
    from .problem import Problem


def require_known_references(problem: Problem) -> None:
    """Refuse a problem that names one the engine does not have.

    Raises:
        GraphError: Naming both, and those there are.
    """
    for argument, name in problem.references.items():
        if name not in problem.position.peers:
            raise GraphError(
                f"Problem {problem.name!r} was made with {argument}={name!r}, which is none of the "
                f"other problems of the engine ({', '.join(problem.position.peers) or 'none'}); "
                "give the name of one of these."
            )


def require_problem(who: str, problem: object) -> None:
    """Refuse what is neither a problem nor a name of one.

    Raises:
        ConfigurationError: Naming what it was given to.
    """
    from .problem import Problem  # noqa: PLC0415 (a problem has references)

    if not isinstance(problem, Problem) and (not isinstance(problem, str) or not problem):
        raise ConfigurationError(
            f"{who} received problem={shown(problem)}; give a problem, or its name."
        )
