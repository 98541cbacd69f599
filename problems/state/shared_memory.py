"""Different tensors that share memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.shards import shard_of


def overlapping(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return two different tensors that have entries in the same memory, or ``None``.

    Views of disjoint parts of one memory do not overlap.
    """
    together: dict[int, list[Tensor]] = {}
    for tensor in dict.fromkeys(tensors):
        held = shard_of(tensor)
        if held.layout is torch.strided and held.numel():
            # Not by its address, which fake tensors lack.
            together.setdefault(held.untyped_storage()._cdata, []).append(tensor)
    for found in together.values():
        reaching: list[Tensor] = []
        for tensor in sorted(found, key=_start):
            reaching = [t for t in reaching if _end(t) > _start(tensor)]
            for other in reaching:
                if _meet(other, tensor):
                    return other, tensor
            reaching.append(tensor)
    return None


def _start(tensor: Tensor) -> int:
    """Return the place of the first entry in its memory, in bytes."""
    held = shard_of(tensor)
    return int(held.storage_offset() * held.itemsize)


def _end(tensor: Tensor) -> int:
    """Return the place after the last entry."""
    held = shard_of(tensor)
    last = sum((size - 1) * step for size, step in zip(held.shape, held.stride(), strict=True))
    return int(_start(tensor) + (last + 1) * held.itemsize)


def _meet(first: Tensor, second: Tensor) -> bool:
    """Return whether entries of two tensors in one memory are in the same place."""
    a, b = shard_of(first), shard_of(second)
    if a.dtype != b.dtype:
        return True
    uses = torch.zeros(a.untyped_storage().nbytes() // a.itemsize, dtype=torch.bool, device="cpu")
    uses.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(uses.as_strided(b.shape, b.stride(), b.storage_offset()).any())
