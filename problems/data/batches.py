"""Moves of batches of any structure to a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base.indexed import Indexed
from ..base.nested import with_content


def move_batch(batch: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """Return ``batch`` with every tensor in it on ``device``.

    Tuples, named tuples, lists, dictionaries, other mappings and nestings of these keep their type
    and order; an object with a ``to`` method (a Hugging Face ``BatchEncoding``, a packed sequence,
    a graph batch) is moved by it; everything else is passed through. Nothing is modified in place.
    Copies from pinned memory do not block the host.

    Args:
        batch: The batch.
        device: The device.
        channels_last: Give tensors of four dimensions, images, the ``channels_last`` format.
    """
    if isinstance(batch, Tensor):
        return _move_tensor(batch, device, channels_last)
    if type(batch) in (tuple, list, Indexed):
        there = not channels_last and all([type(b) is Tensor and b.device == device for b in batch])
        parts = (
            batch if there else [move_batch(b, device, channels_last=channels_last) for b in batch]
        )
        return type(batch)(parts)
    move = partial(move_batch, device=device, channels_last=channels_last)
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[move(item) for item in batch])
    if isinstance(batch, Mapping):
        return with_content(batch, {key: move(value) for key, value in batch.items()})
    return batch


def is_empty(batch: Any) -> bool:
    """Return whether a batch holds tensors, none of which has an element."""
    if isinstance(batch, Tensor):
        return batch.numel() == 0
    if isinstance(batch, (tuple, list)):
        items: Iterable[Any] = batch
    elif isinstance(batch, Mapping):
        items = batch.values()
    else:
        return False
    empty = False
    for part in items:
        if type(part) is Tensor and part.numel():
            return False
        if isinstance(part, (Tensor, Mapping, tuple, list)):
            if not is_empty(part):
                return False
            empty = True
    return empty


def _move_tensor(tensor: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    if channels_last and tensor.ndim == 4:
        return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
    return tensor.to(device, non_blocking=True) if tensor.device != device else tensor
