"""Saving and restoring a module's state: buffers around evaluations, everything for roll-back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import CheckpointError
from .optimizer_state import load_optimizer

BufferSlot = tuple[nn.Module, str]


def buffer_slots(module: nn.Module) -> list[BufferSlot]:
    """List where the buffers of ``module`` live: ``(owner, name)`` for each of them."""
    return [
        (owner, name)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


def read_in_training(slots: Sequence[BufferSlot]) -> list[BufferSlot]:
    """Return the slots without those of torch's normalisation layers, whose running estimates a
    pass in training mode writes and does not read."""
    return [slot for slot in slots if not isinstance(slot[0], nn.modules.batchnorm._NormBase)]


@contextmanager
def preserved_buffers(slots: Sequence[BufferSlot]) -> Iterator[None]:
    """Restore buffers at the end of a ``with`` statement.

    Modules behave inside as they always do (batch statistics are used in training mode); only
    running estimates, counters and power-iteration vectors are restored afterwards. A buffer whose
    version has not changed is restored without autograd's notice, so that graphs recorded inside
    stay usable; batch norm writes its running estimates without changing their version.
    """
    before = [owner._buffers[name] for owner, name in slots]
    kept = [b for b in before if b is not None]
    copies = [b.clone() for b in kept]
    versions = [b._version for b in kept]
    try:
        yield
    finally:
        if kept:
            written = [b._version != version for b, version in zip(kept, versions, strict=True)]
            targets = [b if w else b.data for b, w in zip(kept, written, strict=True)]
            with torch.no_grad():
                torch._foreach_copy_(targets, copies)
        for (owner, name), buffer in zip(slots, before, strict=True):
            if owner._buffers[name] is not buffer:
                owner._buffers[name] = buffer


@contextmanager
def frozen_statistics(*models: nn.Module) -> Iterator[None]:
    """Leave the models' running estimates unchanged by passes inside a ``with`` statement.

    In training mode every normalisation layer of torch (``BatchNorm``, ``SyncBatchNorm``,
    ``InstanceNorm``) still uses the statistics of its batch, and a spectral norm its power
    iteration; their running estimates are restored at the end, also after an exception. Modes,
    parameters and graphs are not changed. Nestable.

    Use it for passes over perturbed inputs, whose distribution is not that of the inputs the model
    will be used on.
    """
    with preserved_buffers([slot for model in models for slot in buffer_slots(model)]):
        yield


class KeptBuffers:
    """Copies of a module's buffers, updated before each step and restored when a step fails.

    Args:
        module: The module, whose buffers are looked up once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._slots = buffer_slots(module)
        self._buffers: list[Tensor | None] = []
        self._values: list[list[Tensor]] = []
        self._kinds: list[list[Tensor]] = []

    def keep(self) -> None:
        """Copy the current buffers."""
        if not self._slots:
            return
        now = [owner._buffers[name] for owner, name in self._slots]
        same = len(now) == len(self._buffers) and all(map(is_, now, self._buffers))
        with torch.no_grad():
            if not same:
                self._make_room(now)
            for buffers, values in zip(self._kinds, self._values, strict=True):
                torch._foreach_copy_(values, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the buffers, in place."""
        for buffers, values in zip(self._kinds, self._values, strict=True):
            torch._foreach_copy_(buffers, values)
        for (owner, name), buffer in zip(self._slots, self._buffers, strict=True):
            owner._buffers[name] = buffer

    def _make_room(self, buffers: list[Tensor | None]) -> None:
        self._buffers = buffers
        kinds: dict[Any, list[Tensor]] = {}
        for buffer in filter(torch.is_tensor, buffers):
            # One kernel copies all tensors of one type.
            kinds.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._kinds = list(kinds.values())
        self._values = [[torch.empty_like(b) for b in kind] for kind in self._kinds]


class Snapshot:
    """A copy of parameters, buffers, optimizer and loss-scaler state.

    Args:
        parameters: The parameters.
        slots: Where the buffers live.
        optimizer: The optimizer, or ``None``.
        scaler: The loss scaler, or ``None``.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        slots: Sequence[BufferSlot],
        optimizer: Any,
        scaler: Any,
    ) -> None:
        self._slots = [(owner, name, owner._buffers[name]) for owner, name in slots]
        buffers = [buffer for _, _, buffer in self._slots if buffer is not None]
        self._tensors = list(dict.fromkeys((*parameters, *buffers)))
        self._values = [t.detach().clone() for t in self._tensors]
        self._optimizer: Any = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self._scaler = None if scaler is None else copy.deepcopy(scaler.state_dict())

    @torch.no_grad()
    def restore(self, optimizer: Any, scaler: Any) -> None:
        """Restore everything, in place."""
        for owner, name, buffer in self._slots:
            owner._buffers[name] = buffer
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        if optimizer is not None:
            load_optimizer(optimizer, copy.deepcopy(self._optimizer))
        if scaler is not None:
            scaler.load_state_dict(self._scaler)

    def state_dict(self) -> dict[str, Any]:
        """Return the copies, to be saved."""
        return {
            "values": self._values,
            "optimizer": self._optimizer,
            "scaler": self._scaler,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the copies of another snapshot of the same problem.

        Raises:
            CheckpointError: When that is of other tensors.
        """
        kept = state["values"]
        if [v.shape for v in kept] != [v.shape for v in self._values]:
            raise CheckpointError(
                "The checkpoint holds a roll-back snapshot of another module; build the program it "
                "was saved with."
            )
        self._values = [k.to(v.device) for k, v in zip(kept, self._values, strict=True)]
        self._optimizer, self._scaler = state["optimizer"], state["scaler"]
