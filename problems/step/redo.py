"""The last optimizer step taken again, once upper problems have stepped."""

from __future__ import annotations

from functools import partial

from ..base.step_result import StepResult
from ..problem import Problem
from ..recording.trajectory import RecordedStep
from ..state.buffers import Snapshot
from ..state.random_streams import preserved_streams
from .descent import accumulate_gradient, average_gradient, update
from .guarded_gradient import Accepts, guarded_gradient


def redo(problem: Problem, accepts: Accepts | None = None) -> bool:
    """Repeat the last optimizer step, on its own batches and random numbers.

    Returns:
        Whether it was taken; ``accepts`` may have refused.
    """
    with problem.processes.whole_parameters():
        return _redo(problem, accepts)


def _redo(problem: Problem, accepts: Accepts | None) -> bool:
    problem.skipped = False
    with preserved_streams(problem.device):
        for step in problem.window:
            step.random.restore()
            problem.cur_batch = step.batch
            guarded_gradient(problem, accepts, partial(_gradient, problem, step, accepts))
    problem.hypergradient_terms.clear()
    if problem.skipped:
        problem.zero_grad()
        return False
    update(problem)
    return True


def redo_or_keep(problem: Problem, start: Snapshot, accepts: Accepts) -> bool:
    """Repeat the last optimizer step from ``start``, or leave all as it is if that is refused.

    Returns:
        Whether it was taken.
    """
    end = Snapshot(problem.module, problem.optimizer, problem.scaler)
    taken = False
    try:
        start.restore(problem.optimizer, problem.scaler)
        taken = redo(problem, accepts)
    finally:
        if not taken:
            end.restore(problem.optimizer, problem.scaler)
    return taken


def _gradient(problem: Problem, step: RecordedStep, accepts: Accepts | None) -> StepResult:
    result = accumulate_gradient(problem, step.batch)
    if step is problem.window[-1]:
        average_gradient(problem, result if accepts is not None else None)
    return result
