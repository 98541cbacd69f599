"""A warning of a program whose iterations are taken by Python, though they were to be captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .period import LONGEST

if TYPE_CHECKING:
    from ..engine import Engine

PATIENCE = 3 * LONGEST
"""Iterations by Python after which it is told: two periods come before one that is captured."""

INSIDE_LOOPS = (
    "no iteration ends between the loops of all problems, as it would with unroll_steps that are "
    "multiples of each other"
)
NEVER_ALIKE = "the steps of one period are not those of the next"
SOON_ENDED = (
    "a validation, a checkpoint or the end of run() comes before the iterations of one graph are "
    "over, as it would not with a larger valid_step or a smaller capture_iterations"
)


class Uncaptured:
    """Counts the iterations that were left to Python before any was captured.

    Args:
        engine: Whose iterations.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0
        self._why = INSIDE_LOOPS

    def forget(self) -> None:
        """Start again: iterations have been captured."""
        self._count = 0

    def note(self, why: str | None = None) -> None:
        """Note an iteration; warn of a program of which many were left, once.

        Args:
            why: One that begins between loops was left.
        """
        self._why = why or self._why
        lowers = [problem for problem in self._engine.problems if problem.parents]
        if any(problem.count < problem.config.warmup_steps for problem in lowers):
            return
        self._count += 1
        if self._count == PATIENCE:
            self._engine.logger.warning(
                f"EngineConfig(capture=...) has captured none of {PATIENCE} iterations, which were "
                f"taken by Python: {self._why}. Change that, or leave capture out."
            )
