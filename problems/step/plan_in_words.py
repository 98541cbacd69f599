"""The plan of a problem's steps in words, in the order in which a step does what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..base.overridables import overrides
from ..problem import Problem
from ..unrolling import owns_settings
from .plan import StepPlan, plan_of


def plan_in_words(problem: Problem, hooks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what a step of the problem does, one thing after the other.

    Args:
        problem: The problem.
        hooks: What hooks do in it, by the name of their method.
    """
    plan = plan_of(problem)
    return [
        *hooks["before_step"],
        *_before(problem, plan),
        *_gradient(problem, plan),
        *hooks["accepts"],
        *hooks["after_gradient"],
        *_after(problem, plan),
        *hooks["after_step"],
    ]


def _before(problem: Problem, plan: StepPlan) -> Iterator[str]:
    yield "draw a batch"
    if any(problem in path[1:-1] for p in _peers(problem) for path in p.position.paths):
        yield "record it"
    if plan.has_buffers:
        yield "copy buffers"


def _gradient(problem: Problem, plan: StepPlan) -> Iterator[str]:
    kept = ", other networks' buffers put back" if plan.others else ""
    yield f"loss{kept}"
    graphs = problem.step_state.trajectory.keeps_graphs
    if graphs is not False:
        yield "gradient with its graph" + ("" if graphs else ", to be measured")
    elif not plan.paths:
        yield "gradient"
    elif plan.starts:
        below = ", ".join(lower.name for lower in plan.starts)
        yield f"gradient by its own parameters and those of {below}"
    for path in plan.paths:
        for edge in path.edges:
            yield f"{type(edge.method).__name__} through {edge.lower.name}"
    if not plan.is_alone:
        yield "mean over processes"
    if overrides(problem, "grad_callback"):
        yield "grad_callback"


def _after(problem: Problem, plan: StepPlan) -> Iterator[str]:
    if owns_settings(problem):
        yield "learned settings"
    if problem.config.gradient_clipping > 0:
        yield "clip"
    custom = type(problem).custom_optimizer_step is not Problem.custom_optimizer_step
    scaled = ", unless the gradient overflows" if problem.scaler is not None else ""
    name = "custom_optimizer_step" if custom else f"{type(problem.optimizer).__name__}.step"
    yield f"{name}{scaled}"
    if overrides(problem, "param_callback"):
        yield "param_callback"
    if plan.keeps_states:
        yield "keep the states of methods"
    if problem.scheduler is not None:
        yield f"{type(problem.scheduler).__name__}.step"


def _peers(problem: Problem) -> Sequence[Problem]:
    return list(problem.position.peers.values())
