"""Linear layers whose weight gradients can be graphs without values; see :mod:`.bilinear`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .bilinear import Needed, Unread, bilinear

LEAST = {"cpu": 2**20}
"""The multiplications of a layer from which on a pass that is saved takes longer than the calls of
Python that save it, by type of device."""
LEAST_ELSEWHERE = 2**30


class _Linear:
    """``y = x wᵀ + bias`` for an input (..., I) and a weight (O, I)."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``y``, (..., O)."""
        found: Tensor = torch.ops.aten.linear(x, w, bias)
        return found

    def kept(self, w: Tensor, *, by_x: bool) -> Tensor | None:
        """Return the weight if there is a gradient by the input."""
        return w if by_x else None

    def spread(self, bias: Tensor, like: Tensor) -> Tensor:
        """Return the bias of each row."""
        return bias.expand_as(like)

    def backward(
        self, a: Tensor, x: Tensor, w: Tensor | None, needed: Needed
    ) -> list[Tensor | None]:
        """Return the gradients by input, weight and bias, as far as they are needed."""
        by_x, by_w, by_bias = needed
        rows = _rows(a)
        return [
            a.matmul(w) if by_x and w is not None else None,
            rows.t().mm(_rows(x)) if by_w else None,
            rows.sum(0) if by_bias else None,
        ]


def _rows(t: Tensor) -> Tensor:
    # Counted, since the number of empty rows could be any.
    return t.reshape(t.shape[:-1].numel(), t.shape[-1])


_LINEAR = _Linear()


def linear(unread: Unread, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x wᵀ + bias``, in place of ``torch.nn.functional.linear``.

    Args:
        unread: Asked in every backward pass about the id of the weight, unless it has hooks.
        input: ``x``, (B, ..., I).
        weight: ``w``, (O, I).
        bias: (O,), if any.

    Small layers are torch's own, and so are those of a weight that requires no gradient, of one
    sample without a batch, and of tensors in other forms.
    """
    if _is_covered(input, weight, bias):
        return bilinear(_LINEAR, unread, input, weight, bias)
    return F.linear(input, weight, bias)


def _is_covered(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # What torch returns of one sample is a view, which a function may not return.
    return (
        isinstance(weight, Tensor)
        and weight.requires_grad
        and weight.ndim == 2
        and input.ndim > 1
        and (bias is None or bias.shape == weight.shape[:1])
        and all(t.layout is torch.strided and not t.is_nested for t in (input, weight))
        and input.numel() * weight.shape[0] >= LEAST.get(input.device.type, LEAST_ELSEWHERE)
    )
