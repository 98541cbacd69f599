"""Where the entries of a tensor go that several processes share out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShardLayout:
    """A tensor's entries in a row, as they lie in memory, cut into ranges of one length.

    The last ranges may be shorter, or empty.

    Attributes:
        shape: Of the whole tensor.
        stride: Of the whole tensor.
        rank: Number of this process.
        world: How many processes there are.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    rank: int
    world: int

    @classmethod
    def of(cls, tensor: Tensor, rank: int, world: int) -> ShardLayout:
        """Return the layout for one like ``tensor``; what has gaps or overlaps is laid out anew."""
        # empty_like keeps the strides of what lies densely.
        return cls(tensor.shape, torch.empty_like(tensor.data).stride(), rank, world)

    @property
    def numel(self) -> int:
        """Entries of the whole."""
        return self.shape.numel()

    @property
    def length(self) -> int:
        """Entries of a range that is not shorter."""
        return -(-self.numel // self.world)

    @property
    def start(self) -> int:
        """Where this process's range starts."""
        return min(self.rank * self.length, self.numel)

    @property
    def end(self) -> int:
        """Where it ends."""
        return min(self.start + self.length, self.numel)

    def is_whole(self, value: Any) -> bool:
        """Whether ``value`` is a tensor of the whole's shape."""
        return isinstance(value, Tensor) and value.shape == self.shape

    def is_part(self, value: Any) -> bool:
        """Whether ``value`` is a tensor of the shape of this process's range."""
        return isinstance(value, Tensor) and value.shape == (self.end - self.start,)

    def part(self, tensor: Tensor) -> Tensor:
        """Return a copy of this process's range of a whole tensor, of one dimension."""
        if tensor.stride() != self.stride:
            tensor = tensor.new_empty_strided(self.shape, self.stride).copy_(tensor)
        row = tensor.as_strided((self.numel,), (1,))
        return row[self.start : self.end].clone()

    def whole(self, row: Tensor) -> Tensor:
        """Return all entries, given in a row with whatever behind, in their shape."""
        return row[: self.numel].as_strided(self.shape, self.stride)
