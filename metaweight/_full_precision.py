"""Buffers that keep single precision or better when their module is cast to half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class FullPrecisionBuffers(nn.Module):
    """A module whose tensors, and those of its parts, are moved but never cast below 32 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def in_full(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype.itemsize < 4 else moved

        return super()._apply(in_full, recurse)  # type: ignore[no-untyped-call]
