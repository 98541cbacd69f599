"""A context in which a program computes in double precision, for reference values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.nested import map_tensors
from ..problem import Problem
from ..recording.recorded_steps import OptimizerMoment, RecordedStep, RecordedUpdate
from ..recording.trajectory import Trajectory
from ..state.buffers import buffer_slots


def as_double(value: Any) -> Any:
    """Return floating-point tensors in double precision, also inside tuples, lists and mappings."""
    return map_tensors(_double, value)


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


@contextmanager
def double_precision(problem: Problem) -> Iterator[None]:
    """Convert parameters, buffers, optimizer state and recorded steps of the problem and all its
    peers to double precision inside; restore the original tensors afterwards.

    Kept graphs of earlier steps are released: they no longer contain a parameter whose type has
    changed.
    """
    everyone = [problem, *problem.position.peers.values()]
    for one in everyone:
        one.step_state.trajectory.release_graphs()
    with ExitStack() as stack:
        for one in everyone:
            stack.enter_context(_module_in_double(one))
            stack.enter_context(_recorded_in_double(one))
        yield


@contextmanager
def _module_in_double(problem: Problem) -> Iterator[None]:
    parameters = [(p, p.data, p.grad) for p in problem.module.parameters()]
    buffers = [(owner, name, owner._buffers[name]) for owner, name in buffer_slots(problem.module)]
    try:
        for p, data, _ in parameters:
            p.grad = None
            p.data = as_double(data)
        for owner, name, buffer in buffers:
            owner._buffers[name] = as_double(buffer)
        yield
    finally:
        for p, data, gradient in parameters:
            p.data = data
            p.grad = gradient
        for owner, name, buffer in buffers:
            owner._buffers[name] = buffer


@contextmanager
def _recorded_in_double(problem: Problem) -> Iterator[None]:
    trajectory, optimizer = problem.step_state.trajectory, problem.optimizer
    state: Mapping[Tensor, Any] = {} if optimizer is None else optimizer.state
    kept = problem.step_state.method_states
    try:
        problem.step_state.replace_trajectory(_doubled(trajectory))
        problem.step_state.replace_states(kept.converted(as_double))
        problem.step_state.convert_drawn(_doubled_step)
        if optimizer is not None:
            optimizer.state = defaultdict(dict, {p: as_double(s) for p, s in state.items()})
        yield
    finally:
        problem.step_state.replace_trajectory(trajectory)
        problem.step_state.replace_states(kept)
        problem.step_state.convert_drawn(None)
        if optimizer is not None:
            optimizer.state = state


def _doubled(trajectory: Trajectory) -> Trajectory:
    copy = Trajectory(trajectory.recording)
    for update in trajectory.updates:
        copy.updates.append(
            RecordedUpdate(
                steps=[_doubled_step(step) for step in update.steps],
                start={p: as_double(t) for p, t in update.start.items()},
                written={p: as_double(t) for p, t in update.written.items()},
                buffers=[(slot, as_double(t)) for slot, t in update.buffers],
                moment=None if update.moment is None else _doubled_moment(update.moment),
                share={p: as_double(t) for p, t in update.share.items()},
                begins_loop=update.begins_loop,
                count=update.count,
            )
        )
    copy.has_moved = trajectory.has_moved
    copy.taken, copy.skipped, copy.all_skipped = (
        trajectory.taken,
        trajectory.skipped,
        trajectory.all_skipped,
    )
    return copy


def _doubled_step(step: RecordedStep) -> RecordedStep:
    return replace(step, batch=as_double(step.batch), samples=None, graph=None, versions=None)


def _doubled_moment(moment: OptimizerMoment) -> OptimizerMoment:
    def doubled(states: Mapping[Tensor, Any]) -> dict[Tensor, Any]:
        return {p: as_double(value) for p, value in states.items()}

    return replace(moment, gradients=doubled(moment.gradients), states=doubled(moment.states))
