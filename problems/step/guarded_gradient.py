"""The gradient of a batch, discarded without side effects if it fails or is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..base.errors import HypergradientError
from ..base.step_result import StepResult
from ..problem import Problem
from ..state.buffers import KeptBuffers
from .plan import StepPlan

Accepts = Callable[[Problem, StepResult], bool]


def guarded_gradient(
    problem: Problem,
    plan: StepPlan,
    accepts: Accepts | None,
    gradient: Callable[..., StepResult],
) -> StepResult:
    """Call ``gradient``, which adds to ``.grad``, and ask ``accepts`` whether to keep the result.

    It is called with ``watched``, which says whether somebody asks. If ``accepts`` refuses,
    gradients are dropped, the problem's buffers are restored, and the optimizer step is skipped.
    After an exception gradients and buffers are restored too.

    Raises:
        HypergradientError: When a hypergradient fails and ``accepts`` does not refuse the step.
    """
    buffers = problem.step_state.kept_buffers(problem.module) if plan.has_buffers else None
    try:
        if accepts is None:
            result = gradient(watched=False)
            problem.grad_callback()
            return result
        result = _gradient_or_error(problem, gradient)
        accepted = accepts(problem, result)
        if accepted and result.error is not None:
            raise result.error
    except BaseException:
        _discard(problem, buffers)
        raise
    if not accepted:
        _discard(problem, buffers)
        problem.step_state.skip_update()
    return result


def _gradient_or_error(problem: Problem, gradient: Callable[..., StepResult]) -> StepResult:
    try:
        result = gradient(watched=True)
    except HypergradientError as error:
        return StepResult(torch.full((), torch.nan, device=problem.device), {}, error=error)
    problem.grad_callback()
    return result


def _discard(problem: Problem, buffers: KeptBuffers | None) -> None:
    if buffers is not None:
        buffers.restore()
    problem.zero_grad()
