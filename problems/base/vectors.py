"""Vector algebra on lists of tensors, one fused kernel per call.

For a list of one tensor the ordinary operator is used, whose call is four times as fast. Tensors
may be sharded over processes; norms and inner products, of lists of such alone, are those of the
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .shards import is_sharded, norm_over_shards, shards_of, sum_over_shards

AT_ONCE = 2**20
"""Entries of a vector that are worked on at once where memory is spared."""


def fill_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Replace missing gradients by zeros of the parameter's shape, and sparse ones by dense."""
    return [
        torch.zeros_like(ref) if t is None else t if t.layout is ref.layout else t.to_dense()
        for t, ref in zip(tensors, like, strict=True)
    ]


def own(gradient: Tensor, like: Tensor, taken: set[int]) -> Tensor:
    """Return a gradient with the strides of ``like``, in memory not ``taken`` by others.

    ``autograd.grad`` guarantees neither: ``a + b`` gives both the same tensor, which in-place
    clipping would scale twice, and torch's fused optimizers misread other strides.
    """
    if gradient.layout is not torch.strided:
        return gradient
    memory = gradient.untyped_storage()._cdata
    if gradient.stride() != like.stride() or memory in taken:
        gradient = torch.empty_like(like, dtype=gradient.dtype).copy_(gradient)
    taken.add(memory)
    return gradient


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type in which numbers of these tensors are accumulated: single precision, or that
    of a tensor that is wider.

    Nothing is computed in double precision that was not given in it, since devices such as MPS have
    none.
    """
    widest = torch.float32
    for tensor in tensors:
        widest = torch.promote_types(widest, tensor.dtype)
    return widest


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of the concatenation, 0-dim, of at least single precision."""
    if len(vector) == 1 and type(vector[0]) is Tensor and vector[0].dtype.itemsize >= 4:
        length: Tensor = torch.linalg.vector_norm(vector[0])
        return length
    wide = [t if t.dtype.itemsize >= 4 else t.float() for t in shards_of(vector)]
    entries = wide[0] if len(wide) == 1 else torch.stack(torch._foreach_norm(wide))
    return norm_over_shards(torch.linalg.vector_norm(entries), vector[0])


def real(tensor: Tensor) -> Tensor:
    """Return real and imaginary parts of a complex tensor, as a view; a real tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat(vector: Sequence[Tensor]) -> Tensor:
    """Return the concatenation, of real and imaginary parts where entries are complex."""
    return torch.cat([real(t).reshape(-1) for t in vector])


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo :func:`flat`: return tensors of the shapes and dtypes of ``like``."""
    places = [real(t) for t in like]
    pieces = torch.split(vector, [place.numel() for place in places])
    # Memory of their own: two numbers are a complex one only from an even place in it.
    shaped = [
        p.reshape(t.shape).to(t.dtype, copy=True) for p, t in zip(pieces, places, strict=True)
    ]
    return [
        torch.view_as_complex(p) if t.is_complex() else p for p, t in zip(shaped, like, strict=True)
    ]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of the concatenations; of complex tensors its real part."""
    pairs = [[real(t) for t in shards_of(side)] for side in (left, right)]
    products = torch._foreach_mul(*pairs)
    return sum_over_shards(torch.stack([t.sum() for t in products]).sum(), left[0])


def scale(vector: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    """Return ``factor * vector``, in the dtype of each entry; ``factor`` stays on the device."""
    if len(vector) == 1 or _is_mixed(vector):
        return [t * factor for t in vector]
    return list(torch._foreach_mul(list(vector), cast(Tensor, factor)))


def divide(vector: Sequence[Tensor], divisor: Tensor | float) -> list[Tensor]:
    """Return ``vector / divisor``, in the dtype of each entry; ``divisor`` stays on the device."""
    if len(vector) == 1:
        return [vector[0] / divisor]
    return list(torch._foreach_div(list(vector), cast(Tensor, divisor)))


def put(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Copy a vector into the memory of another."""
    if len(into) == 1:
        into[0].copy_(values[0])
    else:
        torch._foreach_copy_(list(into), list(values))


class Spare(list[Tensor]):
    """A vector that nobody reads again, which a displacement along it may empty."""


def add_quotient(into: list[Tensor], vector: list[Tensor], divisor: Tensor) -> None:
    """Add ``vector / divisor`` to a vector in place; ``divisor`` is 0-dim and stays on the device.

    On the CPU no memory is needed for the quotient.
    """
    if all([_is_wide(p, v) for p, v in zip(into, vector, strict=True)]):
        if len(into) == 1:
            into[0].addcdiv_(vector[0], divisor)
        else:
            torch._foreach_addcdiv_(into, vector, [divisor] * len(into))
    elif len(into) == 1:
        into[0].add_(vector[0] / divisor)
    else:
        torch._foreach_add_(into, torch._foreach_div(vector, divisor))


def _is_wide(into: Tensor, vector: Tensor) -> bool:
    """Whether a quotient is added in one pass: on a card that would be a kernel for each tensor,
    and in 16 bits the divisor would lose digits."""
    return into.is_cpu and into.dtype.itemsize >= 4 and vector.dtype is into.dtype


def add(
    left: Sequence[Tensor], right: Sequence[Tensor], alpha: Tensor | float = 1.0
) -> list[Tensor]:
    """``left + alpha * right``; ``alpha`` stays on the device."""
    if isinstance(alpha, Tensor):
        right, alpha = scale(right, alpha), 1.0
    if len(left) == 1 or _is_mixed(left):
        return [torch.add(a, b, alpha=alpha) for a, b in zip(left, right, strict=True)]
    return list(torch._foreach_add(list(left), list(right), alpha=alpha))


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """``left - right``."""
    if len(left) == 1 or _is_mixed(left):
        return [a - b for a, b in zip(left, right, strict=True)]
    return list(torch._foreach_sub(list(left), list(right)))


def add_in_place(left: list[Tensor], right: Sequence[Tensor], alpha: Tensor | float = 1.0) -> None:
    """Add ``alpha * right`` to ``left``; ``alpha`` stays on the device."""
    if isinstance(alpha, Tensor):
        right, alpha = scale(right, alpha), 1.0
    if len(left) == 1 or _is_mixed(left):
        for a, b in zip(left, right, strict=True):
            a.add_(b, alpha=alpha)
    else:
        torch._foreach_add_(left, list(right), alpha=alpha)


def move_towards(mean: list[Tensor], vector: list[Tensor], weight: float) -> None:
    """Set ``mean`` to ``(1 - weight) mean + weight vector``, in place."""
    if len(mean) == 1 or _is_mixed(mean):
        for a, b in zip(mean, vector, strict=True):
            a.lerp_(b, weight)
    else:
        torch._foreach_lerp_(mean, vector, weight)


def _is_mixed(vector: Sequence[Tensor]) -> bool:
    """Whether some tensors are sharded and others not, which no fused kernel takes."""
    return len({is_sharded(t) for t in vector}) > 1


def parts(vector: Sequence[Tensor]) -> list[slice]:
    """Return slices of a vector, of about :data:`AT_ONCE` entries each, or one tensor."""
    found, start, entries = [], 0, 0
    for end, tensor in enumerate(vector, 1):
        entries += tensor.numel()
        if entries >= AT_ONCE or end == len(vector):
            found.append(slice(start, end))
            start, entries = end, 0
    return found
