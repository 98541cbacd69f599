"""Shard parameters over processes, by torch's ``fully_shard`` (FSDP2).

Only problems without hypergradients of their own are sharded: the networks at the bottom. Upper
problems are small in comparison and stay whole in every process. Torch gathers the parameters of a
module for its passes and reduces gradients in ``backward()``. A gradient by sharded parameters is
therefore read from ``.grad``: it is the mean over processes, sharded like the parameters. Vectors
of the parameters' shape are sharded alike, and a displacement changes the shard of every process.

Sharded problems cannot be differentiated twice: the hooks of FSDP free parameters that a graph
needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from metaweight.problems import ConfigurationError, LossError, Problem
from metaweight.problems.base.shards import is_sharded
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, zeros

from .processes import SeveralProcesses
from .sharded_problem import modules_of, require_shardable, shard_problem


class FullyShardingProcesses(SeveralProcesses):
    """Several processes that shard the parameters of problems at the bottom."""

    def __init__(self, device: torch.device, *, sync_batch_norm: bool = False) -> None:
        super().__init__(device, sync_batch_norm=sync_batch_norm)
        self.mesh = init_device_mesh(device.type, (self.world,))
        self._problems: Sequence[Problem] = ()

    def shard(self, problems: Sequence[Problem]) -> None:
        modules = {problem: modules_of(problem) for problem in problems}
        for problem, found in modules.items():
            require_shardable(problem, problems, found, self.mesh)
        for problem, found in modules.items():
            if found and not _is_sharded(problem):
                shard_problem(problem, found, self.mesh)
        self._problems = problems

    def own_optimizer(self, problem: Problem) -> None:
        # The module or the optimizer may have been replaced.
        if any(problem is known for known in self._problems):
            self.shard(self._problems)

    def shards_alike(self, parameter: Tensor) -> bool:
        shard: Any = parameter
        return shard.device_mesh == self.mesh and tuple(shard.placements) == (Shard(0),)

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        super().broadcast([t for t in tensors if not is_sharded(t)], source)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        # Gradients by sharded parameters are means already.
        means = iter(super().mean([t for t in tensors if not is_sharded(t)]))
        return [t.detach() if is_sharded(t) else next(means) for t in tensors]

    def average_gradients(self, problem: Problem) -> None:
        if _is_sharded(problem):
            self.average_statistics(problem.module)
        else:
            super().average_gradients(problem)

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        if not any(map(is_sharded, inputs)):
            return super().gradients(loss, inputs)
        with self._set_aside(inputs), self._set_aside(self._parameters()):
            _backward(loss)
            return [p.grad for p in inputs]

    def backward(self, loss: Tensor, inputs: Sequence[Tensor]) -> None:
        if not any(map(is_sharded, inputs)):
            super().backward(loss, inputs)
            return
        wanted = set(inputs)
        with self._set_aside([p for p in self._parameters() if p not in wanted]):
            _backward(loss)

    def require_audit(self, lower: Problem) -> None:
        if _is_sharded(lower):
            raise ConfigurationError(
                f"check_hypergradient() must differentiate problem {lower.name!r} twice, but "
                "EngineConfig(strategy='fsdp') shards it; check the same program in one process, "
                "with strategy='default'."
            )

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return zeros(*shape, dtype=dtype, device_mesh=self.mesh, placements=[Shard(0)])

    def _parameters(self) -> list[Tensor]:
        return [p for problem in self._problems for p in problem.module.parameters()]

    @contextmanager
    def _set_aside(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Set ``.grad`` to ``None`` inside, and restore it afterwards."""
        before = [p.grad for p in parameters]
        try:
            for p in parameters:
                p.grad = None
            yield
        finally:
            for p, gradient in zip(parameters, before, strict=True):
                p.grad = gradient


def _backward(loss: Tensor) -> None:
    """Go back, with a sentence of our own where a module's outputs hide from FSDP."""
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "storage of size 0" not in str(error):
            raise
        raise LossError(
            "The backward pass needs parameters that EngineConfig(strategy='fsdp') has not "
            "gathered again: it knows when to by the outputs of a module, and finds these in "
            "tensors, tuples, lists and dictionaries alone. Return such from forward(), or tell "
            "torch of their class by torch.utils._pytree.register_pytree_node."
        ) from error


def _is_sharded(problem: Problem) -> bool:
    return any(map(is_sharded, problem.module.parameters()))
