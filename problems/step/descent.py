"""One optimizer step: gradients, direct and through lower problems, then the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import DataError, LossError, MetaweightError
from ..base.graph_neighbours import versions_around
from ..base.overridables import Overridables
from ..base.step_result import StepResult
from ..data.batch_digest import batch_form
from ..data.batches import is_empty
from ..hypergradients.parameter_selection import is_partial, others_frozen
from ..hypergradients.undetected_dependencies import look_for_dependence
from ..hypergradients.value import UpperLoss
from ..kernels.twice_differentiable import differentiable_twice
from ..problem import Problem
from ..recording.trajectory import GradientGraph, RecordedStep
from ..state.buffers import preserved_buffers
from ..state.random_streams import RandomState
from .finiteness import finite_gradient
from .guarded_gradient import Accepts, guarded_gradient
from .paths import hypergradient, require_used

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
    """Draw a batch, add its gradient, and update the parameters if it completes the accumulation.

    Args:
        problem: The problem to step; its ``count`` already includes this step.
        record: Keep the random state, since a hypergradient or a roll-back will replay the step.
        first: Whether the batch opens an accumulation window.
        last: Whether the batch completes it.
        after_gradient: Called when the gradient is in ``.grad``, of a batch that is accepted.
        accepts: Asked whether the batch may have its part in an optimizer step. One that may not
            leaves no trace, and the step it belongs to is left out.
    """
    before = problem.hold_parameters()
    if first:
        problem.skipped = False
        problem.zero_grad()
    batch: Any = NONE_YET
    try:
        batch = problem.cur_batch = drawn_batch(problem)
        if record:
            if first:
                problem.trajectory.open(problem)
            problem.trajectory.add(RecordedStep(batch, RandomState(problem.device)))

        def gradient() -> StepResult:
            result = accumulate_gradient(problem, batch)
            if last:
                average_gradient(problem, result if accepts is not None else None)
            return result

        result = guarded_gradient(problem, accepts, gradient)
        if not problem.skipped:
            after_gradient(problem)
        if last:
            result.skipped = problem.skipped
            _finish(problem, result)
    except BaseException as error:
        problem.trajectory.abandon()
        problem.zero_grad()
        tell_where(error, problem, batch)
        raise
    finally:
        problem.hypergradient_terms.clear()
        problem.release_parameters(before)
    return result


def tell_where(error: BaseException, problem: Problem, batch: Any) -> None:
    """Let an error of the user's own code say in which step of which problem it happened."""
    # Before Python 3.11 there are no notes.
    if isinstance(error, MetaweightError) or not hasattr(error, "add_note"):
        return
    place = "while its batch was drawn" if batch is NONE_YET else f"on {batch_form(batch)}"
    error.add_note(f"This happened in step {problem.count} of problem {problem.name!r}, {place}.")


def _finish(problem: Problem, result: StepResult) -> None:
    if result.skipped:
        problem.zero_grad()
        problem.trajectory.skip_step()
        return
    update(problem)
    if result.overflow:
        # The loss scaler has left the step out.
        problem.trajectory.skip_step()
    else:
        problem.trajectory.complete()


def skip_step(problem: Problem, *, record: bool, first: bool, last: bool) -> StepResult:
    """Draw a batch and evaluate its loss, without its part in an optimizer step."""
    if first:
        problem.skipped = False
    batch = problem.cur_batch = drawn_batch(problem)
    if record and first:
        problem.trajectory.open(problem)
    with preserved_buffers(problem.all_buffer_slots()):
        result = StepResult(*problem.evaluate(batch))
    problem.skipped, result.skipped = True, last
    if last:
        _finish(problem, result)
    return result


def drawn_batch(problem: Problem) -> Any:
    """Return the problem's next batch.

    Raises:
        DataError: When there is nothing in it.
    """
    batch = problem.get_batch()
    if is_empty(batch):
        raise DataError(
            f"Problem {problem.name!r} received a batch without samples ({batch_form(batch)}) in "
            f"step {problem.count}, whose mean loss is not a number; leave it out in the loader, "
            "for instance with drop_last=True."
        )
    return batch


def average_gradient(problem: Problem, watched: StepResult | None = None) -> None:
    """Average the accumulated gradient over processes, keeping this one's where it is asked for.

    Where somebody may refuse the step, ``watched`` notes whether this one's was finite.
    """
    if watched is not None and problem.processes.world > 1:
        watched.own = finite_gradient(problem, watched.loss)
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
    zeroth_order = [path[1].hypergradient.zeroth_order for path in paths]
    again = None
    if any(zeroth_order):
        again = UpperLoss(problem, lambda: _scaled(problem, problem.evaluate(batch)[0]))
    own = list(problem.trainable_parameters())
    left = [p.grad for p in own]
    if any(is_partial(path[1]) for path in paths):
        with others_frozen(problem):
            loss, metrics = problem.evaluate(batch)
    else:
        loss, metrics = problem.evaluate(batch)
    _require_untouched(problem, own, left)
    scaled = _scaled(problem, loss)
    if not zeroth_order or not all(zeroth_order):
        _require_graph(problem, scaled)
    look_for_dependence(problem, loss)
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
        look_for_dependence(problem, loss)
        places = list(copies.values())
        gradients = torch.autograd.grad(loss, places, create_graph=True, allow_unused=True)
    require_used(problem, gradients)
    found = {p: g for p, g in zip(own, gradients, strict=True) if g is not None}
    versions = versions_around(problem, copies)
    problem.trajectory.keep_graph(GradientGraph(copies, found, versions))
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
    altered = type(problem).param_callback is not Overridables.param_callback
    with problem.processes.whole_parameters() if altered else nullcontext():
        problem.param_callback()
    problem.zero_grad()


def _add_gradients(parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
    taken: set[int] = set()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            total = gradient if parameter.grad is None else parameter.grad + gradient
            parameter.grad = _own(total, parameter, taken)


def _own(gradient: Tensor, parameter: Tensor, taken: set[int]) -> Tensor:
    """Return a gradient laid out like its parameter, in memory that no other one of them has.

    ``autograd.grad`` promises neither: ``a + b`` gives both the same tensor, which clipping in
    place would scale twice, and torch's fused optimizers read a transposed one in the wrong order.
    """
    if gradient.layout is not torch.strided:
        return gradient
    memory = gradient.untyped_storage()._cdata
    if gradient.stride() != parameter.stride() or memory in taken:
        gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
    taken.add(memory)
    return gradient


def _require_untouched(problem: Problem, own: list[Tensor], left: list[Tensor | None]) -> None:
    if not all(map(is_, [p.grad for p in own], left)):
        raise LossError(
            f"training_step of problem {problem.name!r} wrote gradients itself; return the loss "
            "and leave backward(), zero_grad() and optimizer.step() to the engine."
        )


def _require_graph(problem: Problem, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise LossError(
            f"The loss of problem {problem.name!r} does not depend on any parameter that requires "
            "a gradient; compute it from the module, outside torch.no_grad()."
        )
