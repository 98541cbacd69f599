"""Problems differentiated exactly through their optimizer steps."""

from __future__ import annotations

from typing import Any

from .errors import ConfigurationError
from .problem import Problem


class IterativeProblem(Problem):
    """A level whose upper problems differentiate through its unrolled optimizer steps.

    Raises:
        ConfigurationError: Always; this version differentiates implicitly only.
    """

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            f"Problem {name!r} is of class {type(self).__name__}, which asks to differentiate "
            "through unrolled optimizer steps; this version of metaweight cannot do that. "
            "Derive it from ImplicitProblem and choose Config(type=...) instead."
        )
