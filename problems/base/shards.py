"""Tensors of which every process holds a shard: torch's ``DTensor``, of parameters it shards.

Everything here takes ordinary tensors too, and leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

WHOLE = (Tensor, nn.Parameter)
"""Types of tensors that are not sharded."""


def is_sharded(tensor: Any) -> bool:
    """Whether every process holds a shard of the tensor."""
    # Asked of every parameter in a step, and torch.distributed is slow to import.
    return type(tensor) not in WHOLE and hasattr(tensor, "_local_tensor")


def shard_of(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the same memory."""
    held: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return held


def shards_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what this process holds of each tensor, in the same memory."""
    return [t if type(t) in WHOLE else shard_of(t) for t in tensors]


def sum_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Return the sum over the processes that hold the shards of ``like``; all of them ask for it.

    Args:
        value: What this process adds, 0-dim.
        like: A tensor. If it is not sharded, the sum is ``value``.
    """
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Partial  # noqa: PLC0415 (slow to import)

    mesh = like.device_mesh  # type: ignore[attr-defined]
    partial = DTensor.from_local(value, mesh, [Partial()] * mesh.ndim, run_check=False)
    total: Tensor = partial.full_tensor()
    return total


def norm_over_shards(length: Tensor, like: Tensor) -> Tensor:
    """Return the norm of a vector over all processes, like :func:`sum_over_shards`.

    Args:
        length: The norm of what this process holds of it.
        like: An entry of the vector. If it is not sharded, the norm is ``length``.
    """
    return sum_over_shards(length.square(), like).sqrt() if is_sharded(like) else length


@torch.no_grad()
def as_sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """Return ``value``, of the shape of ``like``, sharded as that is or whole as that is.

    All processes ask for it, with the same value.
    """
    if is_sharded(value) == is_sharded(like):
        return value
    if is_sharded(value):
        whole: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        return whole
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (slow to import)

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)
