"""Whether the graphs of recorded steps are kept: measured once, on the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..base.memory import free_memory, shown_bytes

if TYPE_CHECKING:
    from ..problem import Problem

SHARE = 0.5
"""Of the memory that is free, what the graphs of a loop may take; the rest is for their use."""


class Retained(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that counts the memory of tensors that are computed inside and held at the end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[StorageWeakRef, int] = {}
        self._given: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operation is given, and none before it has made, was there already.
        self._given.update(s for s, _ in _storages([args, kwargs]) if s not in self._sizes)
        found = func(*args, **(kwargs or {}))
        self._sizes.update((s, n) for s, n in _storages(found) if s not in self._given)
        return found

    def bytes(self, *, beside: Iterable[Tensor | None] = ()) -> int:
        """Return the bytes that are held now, ``beside`` those of these tensors."""
        others = {s for s, _ in _storages(list(beside))}
        held: list[int] = [
            n
            for s, n in self._sizes.items()
            if not (s in others or s.expired())  # type: ignore[no-untyped-call]
        ]
        return sum(held)


def decide_on_graphs(problem: Problem, size: int) -> None:
    """Let the problem's steps keep their graphs if those of all recorded ones fit in memory, beside
    those of other problems and in all processes, and say which it is.

    Args:
        problem: The problem.
        size: Bytes of the graph of a micro-batch, which is in memory.
    """
    trajectory, processes = problem.step_state.trajectory, problem.step_state.processes
    number = trajectory.recording.updates * problem.config.gradient_accumulation
    peers = problem.position.peers.values()
    # Of which others have not taken all yet.
    granted = sum(p.step_state.trajectory.granted for p in peers if p.device == problem.device)
    free = free_memory(problem.device)
    fits = free is not None and (number - 1) * size + granted <= SHARE * free
    if processes.world > 1:
        (share,) = processes.mean([torch.tensor(float(fits), device=problem.device)])
        fits = bool(share == 1)
    trajectory.decide_on_graphs(fit=fits, size=number * size)
    if problem.logger is not None:
        known = "an unknown amount" if free is None else shown_bytes(free)
        here = " in this process" if processes.world > 1 else ""
        others = f", with {shown_bytes(granted)} of other problems" if granted else ""
        what = "are kept" if fits else "are built again, one at a time"
        problem.logger.info(
            f"Unroll(memory='auto') of problem {problem.name!r}: the graphs of {number} passes "
            f"{what}. Each takes {shown_bytes(size)}; {known} of memory is free{here}, of which "
            f"they may take {SHARE:.0%}{others}."
        )


def _storages(value: Any) -> Iterator[tuple[StorageWeakRef, int]]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            storage = leaf.untyped_storage()
            yield StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
