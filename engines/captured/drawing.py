"""Batches of a period, drawn before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import ConfigurationError
from metaweight.problems.step.descent import next_batch
from torch import Tensor

from ..program.instructions import Action
from .batches import Place, require_batches_that_stay, watching
from .drawn import Drawn
from .period import Period

if TYPE_CHECKING:
    from ..engine import Engine
    from ..execution import Execution


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
        All of them, or those up to an error of a loader.

    Raises:
        ConfigurationError: For a batch that is refused.
    """
    by_name = {problem.name: problem for problem in engine.problems}
    counts = [(p.step_state, p.count, p.step_state.global_step) for p in engine.problems]
    found = Drawn()
    try:
        with execution.looking_ahead():
            for iteration in period.iterations:
                execution.count()
                for one in (each for each in iteration if each.action is Action.STEP):
                    problem, found.failed = by_name[one.problem], one.problem
                    problem.step_state.begin_step(one.count, engine.global_step)
                    batch = next_batch(problem)
                    if keep is not None:
                        keep(batch)
                    found.names.append(one.problem)
                    found.batches.append(batch)
    except ConfigurationError:
        raise
    except Exception as error:
        found.error = error
    finally:
        for state, count, global_step in counts:
            state.begin_step(count, global_step)
    return found


def draw_watched(
    engine: Engine, execution: Execution, period: Period, tensors: Mapping[str, Sequence[Tensor]]
) -> tuple[Drawn, list[Place]]:
    """Draw the batches of a period, and return copies of them too.

    Args:
        engine: Whose problems draw.
        execution: What counts its iterations.
        period: The period.
        tensors: What its steps write to.

    Raises:
        ConfigurationError: For batches that are made of these tensors, or written to again.
    """
    copies: list[Place] = []
    with watching(t for several in tensors.values() for t in several):
        drawn = draw(engine, execution, period, lambda batch: copies.append(Place(batch)))
    require_batches_that_stay(copies, drawn.batches)
    return drawn, copies
