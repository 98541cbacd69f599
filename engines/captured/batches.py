"""Batches in tensors of their own, to which later ones are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from metaweight.problems.base.nested import map_tensors
from torch import Tensor


class Place:
    """A copy of a batch, to which others of its form are written.

    Args:
        batch: The batch.

    Attributes:
        batch: The copy.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = map_tensors(lambda t: t.detach().clone(), batch)
        self._parts = _parts(self.batch, [])

    def fits(self, batch: Any) -> bool:
        """Return whether a batch differs by the values of tensors alone."""
        others = _parts(batch, [])
        return len(others) == len(self._parts) and all(map(_alike, self._parts, others))

    @torch.no_grad()
    def write(self, batch: Any) -> None:
        """Write a batch that fits."""
        for here, there in zip(self._parts, _parts(batch, []), strict=True):
            if isinstance(here, Tensor):
                here.copy_(there)


def _parts(nest: Any, into: list[Any]) -> list[Any]:
    """Add to a list what a batch holds, and the names and kinds of its containers."""
    kind = type(nest)
    if kind is Tensor:
        into.append(nest)
    elif kind is tuple or kind is list:
        for part in nest:
            _parts(part, into)
    elif isinstance(nest, Mapping):
        into.append(tuple(nest))
        for part in nest.values():
            _parts(part, into)
    elif isinstance(nest, tuple):
        into.append(kind)
        for part in nest:
            _parts(part, into)
    else:
        into.append(nest)
    return into


def _alike(here: Any, there: Any) -> bool:
    if isinstance(here, Tensor):
        is_tensor = isinstance(there, Tensor)
        return is_tensor and here.shape == there.shape and here.dtype is there.dtype
    return here is there or (type(here) is type(there) and bool(here == there))
