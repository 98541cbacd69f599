"""Different tensors that share memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base.shards import shard_of


def overlapping(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return two different tensors that have entries in the same memory, or ``None``.

    Views of disjoint parts of one memory do not overlap. Tensors without memory of their own, such
    as those on the device ``"meta"``, are passed over.
    """
    together: dict[int, list[Tensor]] = {}
    for tensor in dict.fromkeys(tensors):
        held = shard_of(tensor)
        if held.layout is torch.strided and held.numel() and held.data_ptr():
            together.setdefault(held.untyped_storage().data_ptr(), []).append(tensor)
    for found in together.values():
        reaching: list[Tensor] = []
        for tensor in sorted(found, key=lambda t: shard_of(t).data_ptr()):
            reaching = [t for t in reaching if _end(t) > shard_of(tensor).data_ptr()]
            for other in reaching:
                if _meet(other, tensor):
                    return other, tensor
            reaching.append(tensor)
    return None


def _end(tensor: Tensor) -> int:
    """Return the address after the last entry."""
    held = shard_of(tensor)
    last = sum((size - 1) * step for size, step in zip(held.shape, held.stride(), strict=True))
    return int(held.data_ptr() + (last + 1) * held.itemsize)


def _meet(first: Tensor, second: Tensor) -> bool:
    """Return whether entries of two tensors in one memory are in the same place."""
    a, b = shard_of(first), shard_of(second)
    if a.dtype != b.dtype:
        return True
    uses = torch.zeros(a.untyped_storage().nbytes() // a.itemsize, dtype=torch.bool, device="cpu")
    uses.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(uses.as_strided(b.shape, b.stride(), b.storage_offset()).any())
