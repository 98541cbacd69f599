"""Convolutions and linear maps whose weight gradients can be graphs without values.

To multiply second derivatives with a vector, ``∂<∇_w L, u>/∂w``, autograd needs the graph of
``∇_w L`` but not its value, and computes it all the same: one of the three passes a training step
takes. With ``y = x * w``, linear in ``x`` and in ``w``, and ``a = ∂F/∂y``, both
``∂F/∂x = x̄(a, w)`` and ``∂F/∂w = w̄(a, x)`` are linear in both arguments, so that along cotangents
``c_x, c_w`` of these two::

    by a:  c_x * w + x * c_w        by x:  x̄(a, c_w)        by w:  w̄(a, c_x)

without ``∂F/∂w`` itself. Nor does the tangent of ``y`` take a pass for an ``x`` that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .torch_internals import may_have_hooks

Unread = Callable[[int], bool]
"""Whether nobody reads the value of the gradient of the tensor of that id."""

Needed = tuple[bool, bool, bool]
Found = tuple[Tensor | None, Tensor | None, Tensor | None]

DIMENSIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}

LEAST_PRODUCTS = {"cpu": 2**21}
"""Multiplications of a linear map that take as long as calling what avoids them, by device."""
LEAST_PRODUCTS_ELSEWHERE = 2**30


def linear(unread: Unread, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x wᵀ + bias``, in place of ``F.linear``.

    Small products are left to torch, as are samples without a batch and sparse weights.

    Args:
        unread: Asked in every backward pass about the id of the weight, unless it has hooks.
        input: ``x``, (..., features).
        weight: ``w``, (outputs, features).
        bias: (outputs,).
    """
    least = LEAST_PRODUCTS.get(input.device.type, LEAST_PRODUCTS_ELSEWHERE)
    plain = weight.ndim == 2 and weight.layout is torch.strided
    if input.ndim < 2 or not plain or input.numel() * weight.shape[0] < least:
        return F.linear(input, weight, bias)
    output: Tensor = _Bilinear.apply(input, weight, bias, _Linear(), unread)
    return output


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
    product = _Convolution(
        _each(stride, n), _each(padding, n), _each(dilation, n), False, [0] * n, groups
    )
    output: Tensor = _Bilinear.apply(input, weight, bias, product, unread)
    return output


class _Product(Protocol):
    """A map ``x * w`` that is linear in ``x`` and in ``w``."""

    def value(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x * w + bias``."""

    def adjoints(self, a: Tensor, x: Tensor, w: Tensor, needed: Needed) -> Found:
        """Return ``x̄(a, w)``, ``w̄(a, x)`` and the sum of ``a``, as far as they are needed."""

    def of_bias(self, bias: Tensor, dimensions: int) -> Tensor:
        """Return ``bias`` in a shape that broadcasts to ``x * w``."""


class _Linear:
    def value(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, w, bias)

    def adjoints(self, a: Tensor, x: Tensor, w: Tensor, needed: Needed) -> Found:
        by_x, by_w, by_bias = needed
        return (
            a @ w if by_x else None,
            _rows(a).T @ _rows(x) if by_w else None,
            _rows(a).sum(0) if by_bias else None,
        )

    def of_bias(self, bias: Tensor, dimensions: int) -> Tensor:
        del dimensions
        return bias


class _Convolution(NamedTuple):
    """Arguments of a convolution beyond its tensors, as torch's own functions take them."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def value(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        found: Tensor = torch.ops.aten.convolution(x, w, bias, *self)
        return found

    def adjoints(self, a: Tensor, x: Tensor, w: Tensor, needed: Needed) -> Found:
        if not any(needed):
            return None, None, None
        found: Found = torch.ops.aten.convolution_backward(
            a, x, w, [w.shape[0]], *self, list(needed)
        )
        return found

    def of_bias(self, bias: Tensor, dimensions: int) -> Tensor:
        return bias.view(-1, *[1] * (dimensions - 2))


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, product: _Product, unread: Unread
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        # An x without a tangent then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.product, ctx.unread, ctx.weight = product, unread, id(w)
        output = product.value(x, w, bias)
        ctx.shape = output.shape
        return output

    @staticmethod
    def backward(ctx: Any, a: Tensor | None) -> Any:
        if a is None:
            return None, None, None, None, None
        x, w = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[:3])
        skip = needed[1] and not may_have_hooks(w) and ctx.unread(ctx.weight)
        return *_BilinearBackward.apply(a, x, w, ctx.product, needed, skip), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Any:
        x, w = ctx.saved_tensors
        along_x = None if dx is None else ctx.product.value(dx, w)
        along = _sum(along_x, _affine(ctx.product, x, dw, dbias, len(ctx.shape)))
        # Of a bias alone.
        return None if along is None else along.expand(ctx.shape)


class _BilinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, w: Tensor, product: _Product, needed: Needed, skip: bool
    ) -> Any:
        ctx.save_for_backward(a, x, w)
        ctx.save_for_forward(a, x, w)
        ctx.set_materialize_grads(False)
        ctx.product, ctx.needed, ctx.skip = product, needed, skip
        by_x, by_w, by_bias = product.adjoints(
            a, x, w, (needed[0], needed[1] and not skip, needed[2])
        )
        return by_x, _without_value(w) if skip else by_w, by_bias

    @staticmethod
    def backward(ctx: Any, c_x: Tensor | None, c_w: Tensor | None, c_bias: Tensor | None) -> Any:
        a, x, w = ctx.saved_tensors
        product = ctx.product
        through_x = None if c_x is None else product.value(c_x, w)
        by_a = _sum(through_x, _affine(product, x, c_w, c_bias, a.ndim))
        _, needs_x, needs_w, *_ = ctx.needs_input_grad
        by_x = by_w = None
        if needs_x and c_w is not None:
            by_x = product.adjoints(a, x, c_w, (True, False, False))[0]
        if needs_w and c_x is not None:
            by_w = product.adjoints(a, c_x, w, (False, True, False))[1]
        return None if by_a is None else by_a.expand_as(a), by_x, by_w, None, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> Any:
        a, x, w = ctx.saved_tensors
        product, (by_x, by_w, by_bias) = ctx.product, ctx.needed
        wants_w = by_w and not ctx.skip
        along_x = along_w = along_bias = None
        if da is not None:
            along_x, along_w, along_bias = product.adjoints(da, x, w, (by_x, wants_w, by_bias))
        if by_x and dw is not None:
            along_x = _sum(along_x, product.adjoints(a, x, dw, (True, False, False))[0])
        if wants_w and dx is not None:
            along_w = _sum(along_w, product.adjoints(a, dx, w, (False, True, False))[1])
        if by_x and along_x is None:
            along_x = torch.zeros_like(x)
        if by_w and along_w is None:
            along_w = _without_value(w) if ctx.skip else torch.zeros_like(w)
        if by_bias and along_bias is None:
            along_bias = w.new_zeros(w.shape[0])
        return along_x, along_w, along_bias


def _affine(
    product: _Product, x: Tensor, w: Tensor | None, bias: Tensor | None, dimensions: int
) -> Tensor | None:
    """Return ``x * w + bias`` where either may be missing."""
    if w is not None:
        return product.value(x, w, bias)
    return None if bias is None else product.of_bias(bias, dimensions)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of those that are there."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _without_value(w: Tensor) -> Tensor:
    """Return a zero for every weight, in the memory of one."""
    return w.new_zeros(()).expand_as(w)


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def _rows(values: Tensor) -> Tensor:
    """Return (B, features) of (..., features)."""
    return values if values.ndim == 2 else values.reshape(-1, values.shape[-1])
