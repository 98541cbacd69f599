"""Replay of a problem's recorded optimizer steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..base.displacement import exchange
from ..base.shards import shards_of
from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from ..recording.trajectory import Trajectory
from .optimizer_step import OptimizerStep
from .torch_rule import optimizer_copy

Observer = Callable[[Mapping[str, Any]], None]


class Repeatable(Protocol):
    """A problem whose recorded optimizer steps can be replayed."""

    @property
    def trajectory(self) -> Trajectory:
        """The recorded steps."""

    @property
    def optimizer_step(self) -> OptimizerStep:
        """Its optimizer step."""

    def evaluate(self, step: RecordedStep) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of a recorded micro-batch as in training, with the same random numbers,
        and the mapping that ``training_step`` returned, or an empty one."""

    def owns(self, holder: Tensor | nn.Module) -> bool:
        """Return whether a parameter or a submodule is the problem's own, and not another's in the
        same network."""


def restore_start(update: RecordedUpdate) -> None:
    """Set parameters and buffers to their values before a recorded step."""
    _put([*update.start.items(), *_buffers(update)])


def restore_parameters(values: Mapping[Tensor, Tensor]) -> None:
    """Set parameters to recorded values."""
    _put([*values.items()])


@contextmanager
def at_start(update: RecordedUpdate) -> Iterator[None]:
    """Set parameters to their values before a recorded step inside a ``with`` statement.

    Meanwhile the record holds those after the step, so that no memory is needed. Buffers are set
    too, and are left so.
    """
    present, recorded = shards_of(p.data for p in update.start), shards_of(update.start.values())
    exchange(present, recorded)
    try:
        _put(_buffers(update))
        yield
    finally:
        exchange(present, recorded)


def _buffers(update: RecordedUpdate) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers that there still are, with their values before a recorded step."""
    # One that was recorded may have been deleted; what scripted modules hold has no get().
    present = [
        (owner._buffers[name], value)
        for (owner, name), value in update.buffers
        if name in owner._buffers
    ]
    return [(buffer, value) for buffer, value in present if buffer is not None]


def _put(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        targets = shards_of(t.data for t, _ in pairs)
        torch._foreach_copy_(targets, shards_of(value for _, value in pairs))


def replay(
    problem: Repeatable,
    updates: Sequence[RecordedUpdate],
    observe: Observer | None = None,
) -> None:
    """Replay recorded optimizer steps from the start of the first one, at present upper parameters.

    Batches, random numbers, optimizer state and settings are those of the recording, which must
    include parameters and optimizer. The optimizer itself and ``.grad`` do not change. Call it
    inside an :class:`~metaweight.problems.products.evaluation.Evaluation` with a
    :class:`~metaweight.problems.base.displacement.Displacement` of all of ``updates[0].start``;
    they restore parameters, buffers and random streams. ``observe`` receives the mapping that each
    ``training_step`` returns, or an empty one, before the backward pass.
    """
    restore_start(updates[0])
    taken = problem.optimizer_step
    if updates[0].begins_loop:
        _set_learned_start(taken)
    twin = optimizer_copy(taken.optimizer)
    first = updates[0].moment
    assert first is not None and first.values
    twin.state = defaultdict(dict, {p: _copies(state) for p, state in first.states.items()})
    trained = [p for p in taken.trained if p.requires_grad]
    with _preserved_gradients(trained):
        for number, update in enumerate(updates):
            if number:
                _restore_problems_below(problem, update)
            _set_gradients(problem, update, trained, observe)
            twin.param_groups = _groups(taken, update)
            type(taken.optimizer).step(twin)


def _set_learned_start(step: OptimizerStep) -> None:
    with torch.no_grad():
        for parameter, value in step.start_of_loop().items():
            parameter.copy_(value)


def _restore_problems_below(problem: Repeatable, update: RecordedUpdate) -> None:
    for parameter, value in update.start.items():
        if not problem.owns(parameter):
            parameter.data.copy_(value)


def _set_gradients(
    problem: Repeatable,
    update: RecordedUpdate,
    trained: Sequence[Tensor],
    observe: Observer | None,
) -> None:
    taken = problem.optimizer_step
    for p in trained:
        p.grad = None
    for step in update.steps:
        # An outer autocast caches casts of the weights before the last step.
        torch.clear_autocast_cache()
        with torch.enable_grad():
            loss, output = problem.evaluate(step)
            if observe is not None:
                observe(output)
            taken.backward(loss / len(update.steps))
    taken.average_gradients()
    if taken.clipping > 0:
        torch.nn.utils.clip_grad_norm_(trained, taken.clipping)


def _groups(step: OptimizerStep, update: RecordedUpdate) -> list[dict[str, Any]]:
    """Return the optimizer's groups of a recorded step, with the present learned settings."""
    moment = update.moment
    assert moment is not None
    groups: list[dict[str, Any]] = step.optimizer.param_groups
    learned: Sequence[Any] = [{}] * len(groups)
    if step.has_learned_settings:
        with torch.no_grad():
            learned = step.learned_settings(update.count)
    found = []
    for group, own in zip(groups, learned, strict=True):
        recorded = next((moment.settings[p] for p in group["params"] if p in moment.settings), {})
        numbers = {name: float(value) for name, value in own.items()}
        found.append({**group, **recorded, **numbers, "params": group["params"]})
    return found


@contextmanager
def _preserved_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [p.grad for p in parameters]
    try:
        yield
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def _copies(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
