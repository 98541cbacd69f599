"""Embeddings and bags of embeddings, composed of operations that can be differentiated twice and
forward.

Torch's gradient by the table leaves out rows of padding, and may be divided by the frequency of a
row in the batch. Here the same holds of forward derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return the rows that ``F.embedding`` returns, shape (..., columns).

    Gradients are dense, whatever ``sparse`` says.
    """
    del sparse
    rows = F.embedding(input, weight, None, max_norm, norm_type)
    if padding_idx is not None:
        padding = (input == padding_idx % len(weight)).unsqueeze(-1)
        rows = torch.where(padding, rows.detach(), rows)
    if scale_grad_by_freq:
        index = input.reshape(-1)
        times = rows.new_zeros(len(weight)).index_add(0, index, rows.new_ones(len(index)))
        constant = rows.detach()
        rows = constant + (rows - constant) / times[input].unsqueeze(-1)
    return rows


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return the bags that ``F.embedding_bag`` returns, shape (bags, columns).

    Gradients are dense, whatever ``sparse`` says.
    """
    del sparse
    bag, number = _bags(input, offsets, include_last_offset)
    index = input.reshape(-1)
    rows = embedding(index, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if padding_idx is not None:
        # Rows of padding go to one bag more, which is left out.
        bag = torch.where(index == padding_idx % len(weight), number, bag)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    empty = rows.new_zeros(number + 1, rows.shape[1])
    if mode == "max":
        where = bag.unsqueeze(1).expand_as(rows)
        return empty.scatter_reduce(0, where, rows, "amax", include_self=False)[:number]
    total = empty.index_add(0, bag, rows)[:number]
    if mode == "sum":
        return total
    counts = torch.zeros_like(empty[:, :1]).index_add(0, bag, torch.ones_like(rows[:, :1]))
    return total / counts[:number].clamp(min=1.0)


def _bags(input: Tensor, offsets: Tensor | None, include_last: bool) -> tuple[Tensor, int]:
    """Return the bag of each index, and the number of bags."""
    if offsets is None:
        number, length = input.shape
        return torch.arange(number, device=input.device).repeat_interleave(length), number
    places = torch.arange(len(input), device=input.device)
    starts = offsets[:-1] if include_last else offsets
    return torch.bucketize(places, starts.to(places.dtype), right=True) - 1, len(starts)
