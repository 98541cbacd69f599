"""Batches of any structure, moved to a device as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def move_batch(batch: Any, device: torch.device) -> Any:
    """Return ``batch`` with every tensor in it on ``device``.

    Tuples, named tuples, lists, dictionaries, other mappings and nestings of these keep their type
    and order; an object with a ``to`` method (a Hugging Face ``BatchEncoding``, a packed sequence,
    a graph batch) is moved by it; everything else is passed through. Nothing is modified in place.
    Copies from pinned memory do not block the host.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True) if batch.device != device else batch
    if type(batch) in (tuple, list):
        return type(batch)([move_batch(item, device) for item in batch])
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[move_batch(item, device) for item in batch])
    if isinstance(batch, Mapping):
        return _move_mapping(batch, device)
    return batch


def _move_mapping(batch: Mapping[Any, Any], device: torch.device) -> Mapping[Any, Any]:
    content = {key: move_batch(value, device) for key, value in batch.items()}
    if type(batch) is dict:
        return content
    try:
        return type(batch)(content)  # type: ignore[call-arg]
    except TypeError:
        return content
