"""Shard the optimizer's state: each process updates some parameters for all.

The optimizer object does not change, with its groups and schedulers. Before its step, a process
sets ``.grad`` of the parameters of other processes to ``None``, so that the optimizer skips them.
After the step, each process broadcasts the parameters it has updated. This is stage 1 of ZeRO:
Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020
(arXiv:1910.02054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from metaweight.problems import ConfigurationError, Problem
from torch import Tensor

from .processes import SeveralProcesses


class ShardingProcesses(SeveralProcesses):
    """Several processes that shard the states of optimizers."""

    def __init__(self, device: torch.device, *, sync_batch_norm: bool = False) -> None:
        super().__init__(device, sync_batch_norm=sync_batch_norm)
        self._shards: dict[torch.optim.Optimizer, StateShards] = {}

    def own_optimizer(self, problem: Problem) -> None:
        optimizer = problem.optimizer
        if optimizer is None:
            return
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigurationError(
                f"Problem {problem.name!r} has the optimizer LBFGS, which keeps one state for all "
                "parameters, so EngineConfig(strategy='zero') cannot shard it; use "
                "strategy='distributed', or another optimizer."
            )
        if optimizer not in self._shards:
            self._shards[optimizer] = StateShards(optimizer, self)
        self._shards[optimizer].drop_others()

    @contextmanager
    def whole_optimizer(self, problem: Problem) -> Iterator[None]:
        shards = self._shards.get(problem.optimizer)
        if shards is None:
            yield
            return
        shards.fetch_others()
        try:
            yield
        finally:
            shards.drop_others()


class StateShards:
    """Assigns the parameters of one optimizer to processes, which update them.

    Args:
        optimizer: The optimizer, built alike in all processes.
        processes: The processes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, processes: SeveralProcesses) -> None:
        self._optimizer = optimizer
        self._processes = processes
        self._owners: dict[Tensor, int] = {}
        self._loads = [0] * processes.world
        self._aside: list[tuple[Tensor, Tensor]] = []
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def drop_others(self) -> None:
        """Drop the state of parameters that other processes update."""
        for parameter in self._of(lambda owner: owner != self._processes.rank):
            self._optimizer.state.pop(parameter, None)

    def fetch_others(self) -> None:
        """Receive the state of parameters that other processes update."""
        everything = self._of(lambda owner: True)
        state = self._optimizer.state
        own = {
            i: {key: _describe(value) for key, value in state[p].items()}
            for i, p in enumerate(everything)
            if self._owners[p] == self._processes.rank and p in state
        }
        for rank, forms in enumerate(self._processes.gather(own)):
            if rank != self._processes.rank:
                for i, entries in forms.items():
                    state[everything[i]] = {
                        key: _allocate(form, everything[i]) for key, form in entries.items()
                    }
            tensors = [t for i in forms for t in state[everything[i]].values()]
            self._processes.broadcast([t for t in tensors if isinstance(t, Tensor)], source=rank)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        for parameter in self._of(lambda owner: owner != self._processes.rank):
            if parameter.grad is not None:
                self._aside.append((parameter, parameter.grad))
                parameter.grad = None

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        for parameter, gradient in self._aside:
            parameter.grad = gradient
        self._aside.clear()
        for rank in range(self._processes.world):
            updated = self._of(lambda owner, rank=rank: owner == rank)  # type: ignore[misc]
            self._processes.broadcast([p for p in updated if p.grad is not None], source=rank)

    def _of(self, chosen: Callable[[int], bool]) -> list[Tensor]:
        """Return the parameters of some owners; assign new ones to the process with the least."""
        parameters: Sequence[Tensor] = [
            p for group in self._optimizer.param_groups for p in group["params"]
        ]
        for parameter in parameters:
            if parameter not in self._owners:
                owner = self._loads.index(min(self._loads))
                self._owners[parameter] = owner
                self._loads[owner] += parameter.numel()
        return [p for p in parameters if chosen(self._owners[p])]


def _describe(value: Any) -> Any:
    """Return a description from which another process can allocate a value."""
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype, value.device.type
    return "value", value


def _allocate(form: Any, parameter: Tensor) -> Any:
    if form[0] == "value":
        return form[1]
    _, shape, dtype, kind = form
    device = parameter.device if kind == parameter.device.type else torch.device(kind)
    like_parameter = shape == parameter.shape
    if like_parameter:
        return torch.empty_like(parameter, dtype=dtype, device=device)
    return torch.empty(shape, dtype=dtype, device=device)
