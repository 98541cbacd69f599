"""The memory that a problem occupies between steps, counted or estimated."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from metaweight.problems import Problem
from metaweight.problems.base.graph_neighbours import problems_that_may_step
from metaweight.problems.base.shards import shard_of
from torch import Tensor, nn


class OptimizerMemory(NamedTuple):
    """Bytes of the state of an optimizer, and whether they are those of its present state."""

    bytes: int
    is_counted: bool


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that this process holds of tensors."""
    return sum(t.numel() * t.element_size() for t in map(shard_of, tensors))


def bytes_of_module(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers."""
    return bytes_of([*module.parameters(), *module.buffers()])


def bytes_of_optimizer(optimizer: torch.optim.Optimizer) -> OptimizerMemory | None:
    """Return the bytes of the state; before the first step those after it.

    Nothing is allocated for this: a copy takes the step on tensors without values. ``None`` where
    that is not possible, and for optimizers other than torch's, whose steps may do anything.
    """
    if optimizer.state:
        return OptimizerMemory(bytes_of(_state(optimizer)), is_counted=True)
    if not type(optimizer).__module__.startswith("torch.optim"):
        return None
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    trial.param_groups = []
    for group in optimizer.param_groups:
        plain: dict[str, Any] = {k: False for k in ("fused", "foreach", "capturable") if k in group}
        stand_ins = [_without_values(p) for p in group["params"] if p.requires_grad]
        trial.param_groups.append({**group, **plain, "params": stand_ins})
    # Hooks of all optimizers are called around the step, and are not to see this one.
    step = type(trial).step
    try:
        getattr(step, "__wrapped__", step)(trial)
    except Exception:
        return None
    return OptimizerMemory(bytes_of(_state(trial)), is_counted=False)


def bytes_of_record(problem: Problem) -> int | None:
    """Return the bytes recorded of the steps that a hypergradient goes through, once all are.

    Batches, graphs and activations are not among them. ``None`` where they depend on an optimizer
    whose state is not known yet.
    """
    record = problem.step_state.trajectory.recording
    trained = bytes_of(problem.trainable_parameters())
    size = 0
    if record.parameters:
        others = problems_that_may_step(problem)
        size += trained + bytes_of(problem.module.buffers())
        size += sum(bytes_of_module(other.module) for other in others)
    if record.optimizer and record.values:
        state = bytes_of_optimizer(problem.optimizer)
        if state is None:
            return None
        size += trained + state.bytes
    if record.shares and problem.step_state.processes.world > 1:
        size += trained
    return record.updates * size


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [v for kept in optimizer.state.values() for v in kept.values() if isinstance(v, Tensor)]


def _without_values(parameter: Tensor) -> Tensor:
    stand_in = torch.empty_like(shard_of(parameter.detach()), device="meta", requires_grad=True)
    stand_in.grad = torch.empty_like(stand_in)
    return stand_in
