"""Batches of a period, drawn before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metaweight.problems.step.descent import next_batch

from ..program.instructions import Action
from .period import Period

if TYPE_CHECKING:
    from ..engine import Engine
    from ..execution import Execution


@dataclass
class Drawn:
    """Batches, step by step.

    Attributes:
        batches: The batches.
        iterations: How many iterations have all of theirs.
        error: What was raised in place of the next batch.
    """

    batches: list[Any] = field(default_factory=list)
    iterations: int = 0
    error: Exception | None = None

    def divided(self, period: Period) -> tuple[Drawn, Drawn]:
        """Return those of whole iterations, and what is left with the error."""
        whole = sum(
            one.action is Action.STEP
            for iteration in period.iterations[: self.iterations]
            for one in iteration
        )
        left = Drawn(self.batches[whole:], 0, self.error)
        return Drawn(self.batches[:whole], self.iterations), left


def draw(
    engine: Engine,
    execution: Execution,
    period: Period,
    keep: Callable[[Any], object] | None = None,
) -> Drawn:
    """Draw the batches of a period, each with the counters of its step.

    Args:
        engine: Whose problems draw.
        execution: What counts its iterations.
        period: The period.
        keep: Called with each batch when it is drawn.

    Returns:
        All of them, or those up to an error.
    """
    by_name = {problem.name: problem for problem in engine.problems}
    counts = [(p.step_state, p.count, p.step_state.global_step) for p in engine.problems]
    found = Drawn()
    try:
        with execution.looking_ahead():
            for iteration in period.iterations:
                execution.count()
                for one in (each for each in iteration if each.action is Action.STEP):
                    problem = by_name[one.problem]
                    problem.step_state.begin_step(one.count, engine.global_step)
                    found.batches.append(next_batch(problem))
                    if keep is not None:
                        keep(found.batches[-1])
                found.iterations += 1
    except Exception as error:
        found.error = error
    finally:
        for state, count, global_step in counts:
            state.begin_step(count, global_step)
    return found
