"""One step of a problem: a batch, its gradient, and the optimizer step it completes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..base.errors import DataError, MetaweightError
from ..base.step_result import StepResult
from ..data.batch_digest import batch_form
from ..data.batches import is_empty
from ..problem import Problem
from ..recording.trajectory import RecordedStep
from ..state.buffers import buffer_slots, preserved_buffers
from ..state.random_streams import RandomState
from .gradient import accumulate_gradient, average_gradient
from .graph_buffers import buffers_of_others
from .guarded_gradient import Accepts, guarded_gradient

NONE_YET = object()


def descend(
    problem: Problem,
    *,
    record: bool,
    first: bool,
    last: bool,
    after_gradient: Callable[[Problem], None],
    accepts: Accepts | None = None,
) -> StepResult:
    """Draw a batch, add its gradient, and take the optimizer step if it completes one.

    Args:
        problem: The problem to step; its ``count`` already includes this step.
        record: Keep the step, since a hypergradient or a roll-back will replay it.
        first: Whether the batch is the first micro-batch of an optimizer step.
        last: Whether it is the last one.
        after_gradient: Called when the gradient is in ``.grad``, of a batch that is accepted.
        accepts: Asked whether the batch may take part in an optimizer step. One that may not
            leaves no trace, and its optimizer step is skipped.
    """
    state = problem.step_state
    held = state.hold(problem.trainable_parameters())
    batch: Any = NONE_YET
    try:
        if first:
            state.open_update()
            problem.zero_grad()
        batch = next_batch(problem)
        if record:
            _record(problem, batch, first=first)
        gradient = partial(_gradient, problem, batch, watched=accepts is not None, last=last)
        result = guarded_gradient(problem, accepts, gradient)
        if not state.skipped:
            after_gradient(problem)
        if last and not state.skipped:
            problem.optimizer_step()
            problem.param_callback()
        if last:
            _close(problem, result)
    except BaseException as error:
        state.trajectory.abandon()
        problem.zero_grad()
        _add_context(error, problem, batch)
        raise
    finally:
        state.forget_terms()
        state.release(held)
    return result


def skip_step(problem: Problem, *, record: bool, first: bool, last: bool) -> StepResult:
    """Draw a batch and evaluate its loss, and skip the optimizer step it belongs to."""
    state = problem.step_state
    if first:
        state.open_update()
    batch = next_batch(problem)
    if record and first:
        state.trajectory.open(problem)
    with preserved_buffers([*buffer_slots(problem.module), *buffers_of_others(problem)]):
        result = StepResult(*problem.evaluate(batch))
    state.skip_update()
    result.skipped = last
    if last:
        _close(problem, result)
    return result


def next_batch(problem: Problem) -> Any:
    """Draw the problem's next batch.

    Raises:
        DataError: When it holds no sample.
    """
    batch = problem.step_state.note_batch(problem.get_batch())
    if is_empty(batch):
        raise DataError(
            f"Problem {problem.name!r} received a batch without samples ({batch_form(batch)}) in "
            f"step {problem.count}, whose mean loss is not a number; leave it out in the loader, "
            "for instance with drop_last=True."
        )
    return batch


def _record(problem: Problem, batch: Any, *, first: bool) -> None:
    trajectory = problem.step_state.trajectory
    if first:
        trajectory.open(problem)
    trajectory.add(RecordedStep(batch, RandomState(problem.device)))


def _gradient(problem: Problem, batch: Any, *, watched: bool, last: bool) -> StepResult:
    result = accumulate_gradient(problem, batch)
    if last:
        average_gradient(problem, result if watched else None)
    return result


def _close(problem: Problem, result: StepResult) -> None:
    """Drop the gradient, and keep the recorded step if it was taken."""
    state = problem.step_state
    result.skipped = state.skipped
    problem.zero_grad()
    # The loss scaler skips a step whose gradient overflows.
    if result.skipped or result.overflow:
        state.trajectory.skip_step()
    else:
        state.trajectory.complete()


def _add_context(error: BaseException, problem: Problem, batch: Any) -> None:
    """Let an error of the user's own code say in which step of which problem it happened."""
    # Before Python 3.11 there are no notes.
    if isinstance(error, MetaweightError) or not hasattr(error, "add_note"):
        return
    place = "while its batch was drawn" if batch is NONE_YET else f"on {batch_form(batch)}"
    error.add_note(f"This happened in step {problem.count} of problem {problem.name!r}, {place}.")
