"""Small algebra on lists of tensors, one fused kernel per call where torch has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def fill_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Replace missing gradients by zeros of the parameter's shape."""
    return [
        torch.zeros_like(ref) if t is None else t for t, ref in zip(tensors, like, strict=True)
    ]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of the concatenation, a 0-dim tensor of at least single precision."""
    wide = [t if t.dtype in (torch.float32, torch.float64) else t.float() for t in vector]
    return torch.nn.utils.get_total_norm(wide)


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner product of the concatenations."""
    return torch.stack([t.sum() for t in torch._foreach_mul(left, right)]).sum()


def scale(vector: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    """``factor * vector``, in the dtype of each entry; ``factor`` stays on the device."""
    return list(torch._foreach_mul(vector, factor))


def add(left: Sequence[Tensor], right: Sequence[Tensor], alpha: float = 1.0) -> list[Tensor]:
    """``left + alpha * right``."""
    return list(torch._foreach_add(left, right, alpha=alpha))


@contextmanager
def displaced(parameters: Sequence[Tensor]) -> Iterator[Displacement]:
    """Let parameters be moved for a while; on leaving they are bit-equal to what they were.

    Storage stays where it is (so that views, cuDNN's packed weights and captured graphs remain
    valid) and version counters are untouched (so that graphs recorded earlier stay usable).
    """
    data = [p.data for p in parameters]
    mover = Displacement(data)
    try:
        yield mover
    finally:
        mover.return_home()


class Displacement:
    """Moves a list of tensors to ``home + shift`` and back."""

    def __init__(self, data: list[Tensor]) -> None:
        self._data = data
        self._home = [t.clone() for t in data]

    def move(self, shift: Sequence[Tensor], sign: int) -> None:
        """Set the tensors to ``home + sign * shift``."""
        torch._foreach_copy_(self._data, torch._foreach_add(self._home, shift, alpha=sign))

    def settle(self) -> None:
        """Make the present position the one to return to."""
        self._home = [t.clone() for t in self._data]

    def return_home(self) -> None:
        """Undo every move."""
        torch._foreach_copy_(self._data, self._home)
