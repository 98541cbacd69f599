"""The gradient of a batch: direct, and through lower problems."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..base.backward import gradients_with_graph, root_of
from ..base.errors import GraphError, LossError
from ..base.graph_neighbours import versions_of
from ..base.step_result import StepResult
from ..kernels.gradient_hooks import hooked, silent_hooks
from ..kernels.torch_internals import only_reads_gradients, optimizer_hooks
from ..kernels.twice_differentiable import differentiable_twice
from ..partial_hypergradient import others_frozen
from ..problem import Problem
from ..recording.graph_memory import Retained, decide_on_graphs
from ..recording.recorded_steps import GradientGraph, tensors_of
from ..recording.trajectory import Trajectory
from ..state.buffers import preserved_buffers
from ..state.swapped_tensors import swapped
from .absent_hypergradients import note_dependence
from .finiteness import finite_gradient
from .method_states import scaled as _scaled
from .own_references import without_references
from .paths import hypergradient, require_used
from .plan import StepPlan
from .upper_loss import UpperLoss


def average_gradient(problem: Problem, watched: StepResult | None = None) -> None:
    """Average the accumulated gradient over processes, and record this process's if asked for.

    Sets ``watched.own``: whether this process's gradient was finite.
    """
    if watched is not None and problem.step_state.processes.world > 1:
        watched.own = finite_gradient(problem, watched.loss)
    problem.step_state.trajectory.keep_share(problem)
    problem.step_state.processes.average_gradients(problem)


def accumulate_gradient(problem: Problem, plan: StepPlan, batch: Any) -> StepResult:
    """Add ``∇ loss(batch) / accumulation`` to ``.grad``, with hypergradients along all paths.

    Buffers of other problems' modules are restored: a batch of the upper problem does not change
    the lower network's batch-norm statistics.
    """
    if not plan.others:
        return _accumulate_gradient(problem, plan, batch)
    with preserved_buffers(plan.others):
        return _accumulate_gradient(problem, plan, batch)


def _accumulate_gradient(problem: Problem, plan: StepPlan, batch: Any) -> StepResult:
    state = problem.step_state
    if state.trajectory.wants_graph():
        return _with_graph(problem, plan, batch)
    again = None
    if plan.measured:
        again = UpperLoss(problem, lambda: _scaled(problem, problem.evaluate(batch)[0]), batch)
    own = state.held or _trained(problem)
    left = [p.grad for p in own]
    if plan.frozen_in_part:
        with others_frozen(problem):
            evaluated = problem.evaluate(batch)
    else:
        evaluated = problem.evaluate(batch)
    if not all(map(is_, [p.grad for p in own], left)):
        raise _gradients_written(problem)
    loss = _scaled(problem, evaluated.loss) if plan.is_scaled else evaluated.loss
    if plan.is_differentiated and not loss.requires_grad:
        raise _without_graph(problem)
    if state.dependence:
        note_dependence(problem, evaluated.loss)
    if plan.paths:
        _add_gradients(problem, own, hypergradient(problem, plan, loss, own, again))
    elif state.trajectory.records_hooks and hooked(own):
        with silent_hooks(own):
            gradients = state.processes.gradients(loss, own)
        require_used(problem, gradients)
        _add_gradients(problem, own, gradients)
    else:
        state.processes.backward(loss, own)
        require_used(problem, [p.grad for p in own])
    return StepResult(*evaluated)


def _with_graph(problem: Problem, plan: StepPlan, batch: Any) -> StepResult:
    """Add the gradient, computed at copies of the parameters, whose graph stays valid after the
    optimizer step."""
    trajectory = problem.step_state.trajectory
    own = [p for p in _trained(problem) if p.requires_grad]
    copies = trajectory.copies_at_start(own)
    instead = _among(copies, plan.parameters)
    retained = Retained() if trajectory.keeps_graphs is None else None
    # The modes see every use of a tensor, so that as little as possible is done inside.
    with differentiable_twice(reads_values=True), nullcontext() if retained is None else retained:
        swap = swapped(problem.module, instead)
        with without_references(problem, instead), swap:
            evaluated = problem.evaluate(batch)
        if not evaluated.loss.requires_grad:
            raise _without_graph(problem)
        places = tuple(copies.values())
        gradients = gradients_with_graph(evaluated.loss, places)
    loss = evaluated.loss
    _take_written(trajectory, copies)
    note_dependence(problem, loss, places)
    require_used(problem, gradients)
    found = {
        p: root_of(g)
        for p, g in zip(own, gradients, strict=True)
        if g is not None and g.requires_grad
    }
    if retained is not None:
        # Graphs do not hold the gradients' values.
        decide_on_graphs(problem, retained.bytes(beside=gradients))
    versions = versions_of((*plan.around, *tensors_of(batch)), plan.buffers_around, copies)
    trajectory.keep_graph(GradientGraph(copies, found, versions))
    given: Sequence[Tensor | None] = [None if g is None else g.detach() for g in gradients]
    optimizer = problem.optimizer
    written = plan.is_scaled or plan.writes_gradients or not only_reads_gradients(optimizer)
    if written or optimizer_hooks(optimizer):
        factor = 1.0 / problem.config.gradient_accumulation
        if problem.scaler is not None:
            factor = problem.scaler.scale(loss.new_full((), factor))
        # In memory of their own: the graph may hold the gradients.
        given = [None if g is None else g * factor for g in given]
    _add_gradients(problem, own, given)
    return StepResult(*evaluated)


def _among(copies: dict[Tensor, Tensor], parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Return the copies of these parameters."""
    if len(copies) == len(parameters) and all(map(is_, copies, parameters)):
        return copies
    return {p: copies[p] for p in parameters if p in copies}


def _take_written(trajectory: Trajectory, copies: dict[Tensor, Tensor]) -> None:
    """Write to parameters what the pass wrote to their copies, such as rows of a given norm."""
    written = [p for p, copy in copies.items() if copy._version > 0]
    if written:
        trajectory.part_from_start(written)
        with torch.no_grad():
            for parameter in written:
                parameter.copy_(copies[parameter])


def _add_gradients(
    problem: Problem, parameters: list[Tensor], gradients: Sequence[Tensor | None]
) -> None:
    taken: set[int] = set()
    with_hooks = {id(p) for p in hooked(parameters)}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if id(parameter) in with_hooks:
            given = vectors.own(gradient, parameter, taken)
            if not problem.step_state.trajectory.accumulate(parameter, given):
                problem.step_state.note_hook_without_graph(parameter)
        else:
            total = gradient if parameter.grad is None else parameter.grad + gradient
            parameter.grad = vectors.own(total, parameter, taken)


def _trained(problem: Problem) -> list[Tensor]:
    # Inside a step these are held.
    found = problem.step_state.held
    if found is None:
        found = list(problem.trainable_parameters())
    if not found:
        raise GraphError(
            f"Problem {problem.name!r} has nothing to train any more: its module has no parameter "
            "that requires a gradient and belongs to its optimizer. After set_module, give an "
            "optimizer over the new parameters by set_optimizer."
        )
    return found


def _gradients_written(problem: Problem) -> LossError:
    return LossError(
        f"training_step of problem {problem.name!r} wrote gradients itself; return the loss and "
        "leave backward(), zero_grad() and optimizer.step() to the engine."
    )


def _without_graph(problem: Problem) -> LossError:
    return LossError(
        f"The loss of problem {problem.name!r} does not depend on any parameter that requires a "
        "gradient; compute it from the module, outside torch.no_grad()."
    )
