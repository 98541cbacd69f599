"""One step of a problem: a micro-batch, its gradient, and perhaps an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..base.errors import MetaweightError
from ..base.step_result import StepResult
from ..data.batch_digest import batch_form
from ..problem import Problem
from ..recording.recorded_steps import RecordedStep
from ..state.buffers import preserved_buffers
from ..state.random_streams import RandomState
from .absent_hypergradients import require_hypergradients
from .batch_numbers import batch_number
from .drawn_batch import require_samples
from .gradient import accumulate_gradient, average_gradient
from .guarded_gradient import Accepts, guarded_gradient
from .method_states import ScaleDrop, has_proposals, settle_states
from .plan import StepPlan, plan_of

NONE_YET = object()

KEPT_GRAPH = "backward through the graph a second time"
"""What torch says of a graph that is gone."""


def descend(
    problem: Problem,
    record: bool,
    first: bool,
    last: bool,
    after_gradient: Callable[[Problem], None],
    accepts: Accepts | None = None,
) -> StepResult:
    """Draw a micro-batch, add its gradient, and take the optimizer step after the last one.

    Args:
        problem: The problem to step; its ``count`` already includes this step.
        record: Record the step for a hypergradient or a roll-back.
        first: Whether this is the first micro-batch of an optimizer step.
        last: Whether this is the last one.
        after_gradient: Called after an accepted micro-batch added its gradient to ``.grad``.
        accepts: Returns whether to accept the micro-batch. If not, its gradient is discarded and
            the optimizer step is skipped.
    """
    state, batch = problem.step_state, NONE_YET
    held = state.held
    try:
        batch = next_batch(problem)
        # Only now: the end of an epoch calls epoch_callback, which may change what is trained.
        plan = plan_of(problem)
        state.begin(problem.trainable_parameters(), first=first)
        if first:
            problem.zero_grad()
            if plan.keeps_states:
                settle_states(problem, plan, taken=False)
        if record:
            _record(problem, batch, first=first)
        gradient = partial(_gradient, problem, plan, batch, last)
        result = guarded_gradient(problem, plan, accepts, gradient)
        if not state.skipped:
            after_gradient(problem)
        if last:
            asks = plan.keeps_states and has_proposals(problem)
            drop = None if state.skipped else _update(problem)
            _close(problem, result)
            if plan.keeps_states:
                taken = not (result.skipped or result.overflow or (asks and bool(drop)))
                settle_states(problem, plan, taken=taken)
            result.drop = drop
    except BaseException as error:
        state.trajectory.abandon()
        problem.zero_grad()
        settle_states(problem, plan_of(problem), taken=False)
        _add_context(error, problem, batch)
        raise
    finally:
        state.end(held)
    return result


def skip_step(problem: Problem, *, record: bool, first: bool, last: bool) -> StepResult:
    """Draw a micro-batch, evaluate its loss, and skip its optimizer step."""
    state = problem.step_state
    if first:
        state.open_update()
    batch = next_batch(problem)
    if record and first:
        state.trajectory.open(problem)
    with preserved_buffers(plan_of(problem).surroundings.buffers):
        result = StepResult(*problem.evaluate(batch))
    state.skip_update()
    result.skipped = last
    if last:
        _close(problem, result)
    return result


def next_batch(problem: Problem) -> Any:
    """Draw the problem's next batch.

    Raises:
        DataError: When it has no samples.
    """
    state = problem.step_state
    batch = problem.get_batch() if state.feed is None else state.feed.draw(problem)
    return require_samples(problem, state.note_batch(batch))


def _record(problem: Problem, batch: Any, *, first: bool) -> None:
    trajectory = problem.step_state.trajectory
    if first:
        trajectory.open(problem)
    number = batch_number(problem) if trajectory.recording.numbers else None
    trajectory.add(RecordedStep(batch, RandomState(problem.device), number=number))


def _gradient(
    problem: Problem, plan: StepPlan, batch: Any, last: bool, *, watched: bool
) -> StepResult:
    result = accumulate_gradient(problem, plan, batch)
    if last:
        if not plan.is_alone:
            average_gradient(problem, result if watched else None)
        if problem.step_state.seen_directly is not None:
            require_hypergradients(problem)
    return result


def _update(problem: Problem) -> ScaleDrop | None:
    """Take the optimizer step; return what tells whether a loss scaler has refused it."""
    drop = None if problem.step_state.scaler is None else ScaleDrop(problem)
    problem.optimizer_step()
    problem.param_callback()
    return drop


def _close(problem: Problem, result: StepResult) -> None:
    """Drop the gradient, and keep the recorded step unless it was skipped."""
    state = problem.step_state
    result.skipped = state.skipped
    problem.zero_grad()
    # The loss scaler skips a step whose gradient overflows.
    if result.skipped or (state.scaler is not None and result.overflow):
        state.trajectory.skip_step()
    else:
        state.trajectory.complete()


def _add_context(error: BaseException, problem: Problem, batch: Any) -> None:
    """Add the problem and the step to an error of the user's code."""
    # Before Python 3.11 there are no notes.
    if isinstance(error, MetaweightError) or not hasattr(error, "add_note"):
        return
    place = "while its batch was drawn" if batch is NONE_YET else f"on {batch_form(batch)}"
    error.add_note(f"This happened in step {problem.count} of problem {problem.name!r}, {place}.")
    if KEPT_GRAPH in str(error):
        error.add_note(
            "A loss uses a tensor that was kept, with its graph, from an earlier evaluation, "
            "such as a running mean of losses; .detach() what you keep between steps."
        )
