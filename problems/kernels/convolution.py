"""Convolutions whose weight gradients can be graphs without values.

To multiply second derivatives with a vector, ``∂<∇_w L, u>/∂w``, autograd needs the graph of
``∇_w L`` but not its value, and computes it all the same: one of the three passes a training step
takes. With ``y = x * w`` and ``a = ∂F/∂y``, a convolution has ``∂F/∂x = x̄(a, w)`` and
``∂F/∂w = w̄(a, x)``, each linear in both arguments, so that along cotangents ``c_x, c_w``::

    by a:  c_x * w + x * c_w        by x:  x̄(a, c_w)        by w:  w̄(a, c_x)

without ``∂F/∂w`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .torch_internals import may_have_hooks

Unread = Callable[[int], bool]
"""Whether nobody reads the value of the gradient of the tensor of that id."""

DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class _Geometry(NamedTuple):
    """Arguments of a convolution beyond its tensors, as torch's own functions take them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


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
    output: Tensor = _Convolution.apply(input, weight, bias, geometry, unread)
    return output


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        geometry: _Geometry,
        unread: Unread,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        # An x without a tangent then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.unread, ctx.weight = geometry, unread, id(w)
        return _forward(x, w, geometry, bias)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None) -> Any:
        if a is None:
            return None, None, None, None, None
        x, w = ctx.saved_tensors
        by_x, by_w, by_bias, *_ = ctx.needs_input_grad
        skip = by_w and not may_have_hooks(w) and ctx.unread(ctx.weight)
        found = _ConvolutionBackward.apply(
            a, x, w, ctx.geometry, (by_x, by_w and not skip, by_bias)
        )
        return *found, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Any:
        x, w = ctx.saved_tensors
        zero = torch.zeros_like(w) if dw is None else dw
        tangent = _forward(x, zero, ctx.geometry, dbias)
        return tangent if dx is None else tangent + _forward(dx, w, ctx.geometry)


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, needed: tuple[bool, ...]
    ) -> Any:
        ctx.save_for_backward(a, x, w)
        ctx.save_for_forward(a, x, w)
        ctx.geometry, ctx.needed = geometry, needed
        by_x, by_w, by_bias = _backward(a, x, w, geometry, needed)
        return by_x, torch.zeros_like(w) if by_w is None else by_w, by_bias

    @staticmethod
    def backward(ctx: Any, c_x: Tensor | None, c_w: Tensor, c_bias: Tensor | None) -> Any:
        a, x, w = ctx.saved_tensors
        geometry = ctx.geometry
        by_a = _forward(x, c_w, geometry, c_bias if ctx.needed[2] else None)
        if not ctx.needed[0]:
            return by_a, None, None, None, None
        assert c_x is not None
        by_a = by_a + _forward(c_x, w, geometry)
        by_x = _only(0, a, x, c_w, geometry)
        by_w = _only(1, a, c_x, w, geometry)
        return by_a, by_x, by_w, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> Any:
        a, x, w = ctx.saved_tensors
        needed = ctx.needed
        along_a = torch.zeros_like(a) if da is None else da
        by_x, by_w, by_bias = _backward(along_a, x, w, ctx.geometry, needed)
        if by_x is not None and dw is not None:
            by_x = by_x + _only(0, a, x, dw, ctx.geometry)
        if by_w is not None and dx is not None:
            by_w = by_w + _only(1, a, dx, w, ctx.geometry)
        return by_x, torch.zeros_like(w) if by_w is None else by_w, by_bias


def _forward(x: Tensor, w: Tensor, geometry: _Geometry, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.aten.convolution(x, w, bias, *geometry)
    return found


def _backward(
    a: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return ``x̄(a, w)``, ``w̄(a, x)`` and the sum of ``a``, as far as they are needed."""
    if not any(needed):
        return [None, None, None]
    found: list[Tensor | None] = list(
        torch.ops.aten.convolution_backward(a, x, w, [w.shape[0]], *geometry, list(needed))
    )
    return found


def _only(position: int, a: Tensor, x: Tensor, w: Tensor, geometry: _Geometry) -> Tensor:
    needed = tuple(number == position for number in range(3))
    found = _backward(a, x, w, geometry, needed)[position]
    assert found is not None
    return found
