"""Convolutions whose weight gradients can be graphs without values; see :mod:`.bilinear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bilinear import Needed, Unread, bilinear

DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class _Geometry(NamedTuple):
    """Arguments of a convolution beyond its tensors, as torch's own functions take them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the convolution."""
        found: Tensor = torch.ops.aten.convolution(x, w, bias, *self)
        return found

    def kept(self, w: Tensor, *, by_x: bool) -> Tensor | None:
        """Return the weight: torch asks for its shape."""
        del by_x
        return w

    def spread(self, bias: Tensor, like: Tensor) -> Tensor:
        """Return the bias of each channel at every place."""
        return bias.view(-1, *[1] * (like.ndim - 2)).expand_as(like)

    def backward(
        self, a: Tensor, x: Tensor, w: Tensor | None, needed: Needed
    ) -> list[Tensor | None]:
        """Return the gradients by input, weight and bias, as far as they are needed."""
        assert w is not None
        found: list[Tensor | None] = list(
            torch.ops.aten.convolution_backward(a, x, w, [w.shape[0]], *self, list(needed))
        )
        return found


def convolution(
    own: Callable[..., Tensor],
    unread: Unread,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return a convolution, in place of ``own``, one of ``torch.conv1d``, ``conv2d``, ``conv3d``.

    Args:
        own: Torch's function, for what is not covered: samples without a batch, padding by name.
        unread: Asked in every backward pass about the id of the weight, unless it has hooks.
        input: See ``own``, as for the arguments that follow.
    """
    n = DIMENSIONS[own]
    if isinstance(padding, str) or input.ndim != n + 2 or weight.ndim != n + 2:
        return own(input, weight, bias, stride, padding, dilation, groups)
    geometry = _Geometry(
        _each(stride, n), _each(padding, n), _each(dilation, n), False, [0] * n, groups
    )
    return bilinear(geometry, unread, input, weight, bias)


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values
