"""Small algebra on lists of tensors, one fused kernel per call where torch has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def fill_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Replace missing gradients by zeros of the parameter's shape."""
    return [torch.zeros_like(ref) if t is None else t for t, ref in zip(tensors, like, strict=True)]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of the concatenation, a 0-dim tensor of at least single precision."""
    wide = [t if t.dtype.itemsize >= 4 else t.float() for t in vector]
    if len(wide) == 1:
        return torch.linalg.vector_norm(wide[0])
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(wide)))


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner product of the concatenations."""
    return torch.stack([t.sum() for t in torch._foreach_mul(left, right)]).sum()


def scale(vector: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    """``factor * vector``, in the dtype of each entry; ``factor`` stays on the device."""
    return list(torch._foreach_mul(vector, factor))


def add(left: Sequence[Tensor], right: Sequence[Tensor], alpha: float = 1.0) -> list[Tensor]:
    """``left + alpha * right``."""
    return list(torch._foreach_add(left, right, alpha=alpha))


class Displacement:
    """Moves parameters for a while; on leaving they are bit-equal to what they were. ::

        with Displacement(parameters) as weights:
            weights.move(shift, +1)

    Storage stays where it is (so that views, cuDNN's packed weights and captured graphs remain
    valid) and version counters are untouched (so that graphs recorded earlier stay usable).
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._data = [p.data for p in parameters]
        self._home = [t.clone() for t in self._data]

    def __enter__(self) -> Displacement:
        return self

    def __exit__(self, *exception: object) -> None:
        torch._foreach_copy_(self._data, self._home)

    def move(self, shift: Sequence[Tensor], sign: int) -> None:
        """Set the parameters to ``home + sign * shift``."""
        torch._foreach_copy_(self._data, torch._foreach_add(self._home, shift, alpha=sign))

    def settle(self) -> None:
        """Make the present position the one to return to."""
        self._home = [t.clone() for t in self._data]
