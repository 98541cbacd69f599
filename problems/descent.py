"""One optimizer step: gradients, direct and through lower problems, then the update."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, LossError
from .hypergradients.unroll import Unroll
from .hypergradients.value import UpperLoss
from .kernels import differentiable_twice
from .partial import is_partial, others_frozen
from .paths import hypergradient, require_used
from .problem import Problem
from .random_streams import RandomState, preserved_streams
from .state import preserved_buffers
from .trajectory import GradientGraph, RecordedStep


class StepResult:
    """What a step leaves to be logged; nothing is detached or read until somebody asks.

    Args:
        loss: The loss, as it was differentiated.
        metrics: What else ``training_step`` returned.
    """

    __slots__ = ("_loss", "metrics")

    def __init__(self, loss: Tensor, metrics: Mapping[str, Any]) -> None:
        self._loss = loss
        self.metrics = metrics

    @property
    def loss(self) -> Tensor:
        """The loss without its graph, a 0-dim tensor on its device."""
        return self._loss.detach()


def descend(
    problem: Problem,
    *,
    record: bool,
    first: bool,
    last: bool,
    after_gradient: Callable[[Problem], None],
) -> StepResult:
    """Draw a batch, add its gradient, and update the parameters if it completes the accumulation.

    Args:
        problem: The problem to step; its ``count`` already includes this step.
        record: Keep the random state, since a hypergradient or a roll-back will replay the step.
        first: Whether the batch opens an accumulation window.
        last: Whether the batch completes it.
        after_gradient: Called when the gradient is in ``.grad``.
    """
    batch = problem.cur_batch = problem.get_batch()
    before = problem.hold_parameters()
    try:
        if record:
            if first:
                problem.trajectory.open(problem)
            problem.trajectory.add(RecordedStep(batch, RandomState(problem.device)))
        result = accumulate_gradient(problem, batch)
        if last:
            average_gradient(problem)
        problem.grad_callback()
        after_gradient(problem)
        if last:
            update(problem)
            problem.trajectory.complete()
    except BaseException:
        problem.trajectory.abandon()
        raise
    finally:
        problem.release_parameters(before)
    return result


def redo(problem: Problem) -> None:
    """Repeat the last optimizer step, on its own batches and random numbers."""
    with preserved_streams(problem.device):
        for step in problem.window:
            step.random.restore()
            accumulate_gradient(problem, step.batch)
            if step is problem.window[-1]:
                problem.processes.average_gradients(problem)
            problem.grad_callback()
    update(problem)


def average_gradient(problem: Problem) -> None:
    """Average the accumulated gradient over processes, keeping this one's where it is asked for."""
    problem.trajectory.keep_share(problem)
    problem.processes.average_gradients(problem)


def accumulate_gradient(problem: Problem, batch: Any) -> StepResult:
    """Add ``∇ loss(batch) / accumulation`` to ``.grad``, hypergradients along all paths included.

    Buffers of other problems' modules are as before afterwards: a batch of the upper problem leaves
    no trace in the lower network's batch-norm statistics.
    """
    slots = problem.other_buffer_slots()
    if not slots:
        return _accumulate_gradient(problem, batch)
    with preserved_buffers(slots):
        return _accumulate_gradient(problem, batch)


def _accumulate_gradient(problem: Problem, batch: Any) -> StepResult:
    if problem.trajectory.wants_graph():
        return _with_graph(problem, batch)
    paths = problem.position.paths
    by_value = [path[1].hypergradient.by_value for path in paths]
    again = None
    if any(by_value):
        again = UpperLoss(problem, lambda: _scaled(problem, problem.evaluate(batch)[0]))
    if any(is_partial(path[1]) for path in paths):
        with others_frozen(problem):
            loss, metrics = problem.evaluate(batch)
    else:
        loss, metrics = problem.evaluate(batch)
    scaled = _scaled(problem, loss)
    own = list(problem.trainable_parameters())
    if not by_value or not all(by_value):
        _require_graph(problem, scaled)
    if paths:
        _add_gradients(own, hypergradient(problem, scaled, own, again))
    else:
        torch.autograd.backward(scaled, inputs=own)
        require_used(problem, [p.grad for p in own])
    return StepResult(loss, metrics)


def _scaled(problem: Problem, loss: Tensor) -> Tensor:
    """Return the loss as it is differentiated: scaled for half precision, averaged."""
    scaled: Tensor = loss if problem.scaler is None else problem.scaler.scale(loss)
    accumulation = problem.config.gradient_accumulation
    return scaled / accumulation if accumulation > 1 else scaled


def _with_graph(problem: Problem, batch: Any) -> StepResult:
    """The same, at copies of the parameters, so that the graph outlives the optimizer step."""
    own = [p for p in problem.trainable_parameters() if p.requires_grad]
    copies = {p: p.detach().clone().requires_grad_() for p in own}
    names = {
        f"module.{name}": copies[p] for name, p in problem.module.named_parameters() if p in copies
    }
    with differentiable_twice():
        loss, metrics = torch.func.functional_call(_Evaluated(problem), names, (batch,))
        _require_graph(problem, loss)
        places = list(copies.values())
        gradients = torch.autograd.grad(loss, places, create_graph=True, allow_unused=True)
    require_used(problem, gradients)
    found = {p: g for p, g in zip(own, gradients, strict=True) if g is not None}
    problem.trajectory.keep_graph(GradientGraph(copies, found))
    factor = 1.0 / problem.config.gradient_accumulation
    if problem.scaler is not None:
        factor = problem.scaler.scale(loss.new_full((), factor))
    _add_gradients(own, [None if g is None else g.detach() * factor for g in gradients])
    return StepResult(loss, metrics)


class _Evaluated(nn.Module):
    """A problem's loss as a module, for a functional call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.module = problem.module
        self._evaluate = problem.evaluate

    def forward(self, batch: Any) -> tuple[Tensor, Mapping[str, Any]]:
        return self._evaluate(batch)


def update(problem: Problem) -> None:
    """Apply the accumulated gradient and drop it."""
    problem.optimizer_step()
    problem.param_callback()
    problem.zero_grad()


def step_scheduler(problem: Problem) -> None:
    """Advance the scheduler by one step; one that waits for a metric is left to the engine."""
    scheduler = problem.scheduler
    if scheduler is None or waits_for_metric(scheduler):
        return
    if problem.count < problem.config.gradient_accumulation:
        with warnings.catch_warnings():
            # The first optimizer step is still to come, which torch takes for a wrong order.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            scheduler.step()
    else:
        scheduler.step()


def waits_for_metric(scheduler: Any) -> bool:
    """Whether the scheduler steps on a measured value rather than on time."""
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def _add_gradients(parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _require_graph(problem: Problem, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise LossError(
            f"The loss of problem {problem.name!r} does not depend on any parameter that requires "
            "a gradient; compute it from the module, outside torch.no_grad()."
        )


def require_first_order(problem: Problem) -> None:
    """Refuse ``first_order=False``, which asks for graphs implicit problems do not keep."""
    lowers = [lower for path in problem.paths for lower in path[1:-1]]
    if not problem.config.first_order and not all(_unrolled(lower) for lower in lowers):
        raise ConfigurationError(
            f"Problem {problem.name!r} has Config(first_order=False): it asks to differentiate "
            "through the graph of unrolled lower problems, which implicit problems do not keep, "
            "so nothing would reach it. Derive the lower problems from IterativeProblem, or use "
            "first_order=True and choose their type."
        )


def _unrolled(problem: Problem) -> bool:
    return isinstance(problem.hypergradient, Unroll)
