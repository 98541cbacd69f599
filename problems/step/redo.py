"""Repetition of the last optimizer step after upper problems have stepped."""

from __future__ import annotations

from functools import partial

from ..base.step_result import StepResult
from ..problem import Problem
from ..recording.recorded_steps import RecordedStep
from ..state.buffers import Snapshot
from ..state.random_streams import preserved_streams
from .gradient import accumulate_gradient, average_gradient
from .guarded_gradient import Accepts, guarded_gradient
from .method_states import settle_states
from .plan import StepPlan, plan_of
from .snapshot import snapshot_of


def redo(problem: Problem, accepts: Accepts | None = None) -> bool:
    """Repeat the last optimizer step with its batches and random numbers.

    Returns:
        Whether it was taken; ``False`` if ``accepts`` refused.
    """
    state, plan = problem.step_state, plan_of(problem)
    state.open_update()
    with preserved_streams(problem.device):
        for step in state.trajectory.window:
            step.random.restore()
            state.note_batch(step.batch_again(problem.name))
            gradient = partial(_gradient, problem, plan, step)
            guarded_gradient(problem, plan, accepts, gradient)
    state.forget_terms()
    # Methods below have moved on in the step that this one replaces.
    settle_states(problem, plan, taken=False)
    if state.skipped:
        problem.zero_grad()
        return False
    problem.optimizer_step()
    problem.param_callback()
    problem.zero_grad()
    return True


def redo_or_keep(problem: Problem, start: Snapshot, accepts: Accepts) -> bool:
    """Repeat the last optimizer step from ``start``; change nothing if ``accepts`` refuses.

    Returns:
        Whether it was taken.
    """
    end = snapshot_of(problem)
    taken = False
    try:
        start.restore(problem.optimizer, problem.scaler)
        taken = redo(problem, accepts)
    finally:
        if not taken:
            end.restore(problem.optimizer, problem.scaler)
    return taken


def _gradient(problem: Problem, plan: StepPlan, step: RecordedStep, *, watched: bool) -> StepResult:
    result = accumulate_gradient(problem, plan, step.batch)
    if step is problem.step_state.trajectory.window[-1]:
        average_gradient(problem, result if watched else None)
    return result
