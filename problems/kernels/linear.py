"""Linear maps whose weight gradients can have a graph without their value.

As in :mod:`.convolution`: with ``y = x wᵀ`` and ``a = ∂F/∂y``, ``∂F/∂x = a w`` and ``∂F/∂w = aᵀ x``
are linear in both arguments, so that along cotangents ``c_x, c_w`` of these two::

    by a:  c_x wᵀ + x c_wᵀ        by x:  a c_w        by w:  aᵀ c_x

without ``∂F/∂w`` itself, which is a third of what a training step computes. In contrast to
torch's, the tangent of ``y`` takes no product for an ``x`` without a tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Unread = Callable[[int], bool]
"""Returns whether the value of the gradient of the tensor with this id is never read."""

LEAST_PRODUCTS = {"cpu": 2**21}
"""Number of multiplications that take as long as the call that avoids them, by device."""
LEAST_PRODUCTS_ELSEWHERE = 2**30


def linear(unread: Unread, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x wᵀ + bias``, in place of ``F.linear``.

    Small products are left to torch, as are samples without a batch and sparse weights.

    Args:
        unread: Called in every backward pass with the id of the weight, unless it has hooks.
        input: ``x``, (..., features).
        weight: ``w``, (outputs, features).
        bias: (outputs,).
    """
    if input.ndim < 2 or not _is_plain(weight) or not _is_large(input, weight):
        return F.linear(input, weight, bias)
    output: Tensor = _Linear.apply(input, weight, bias, unread)
    return output


def _is_plain(weight: Tensor) -> bool:
    return weight.ndim == 2 and weight.layout is torch.strided


def _is_large(input: Tensor, weight: Tensor) -> bool:
    least = LEAST_PRODUCTS.get(input.device.type, LEAST_PRODUCTS_ELSEWHERE)
    return input.numel() * weight.shape[0] >= least


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, unread: Unread) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        # Without materialised gradients, an x without a tangent takes no product.
        ctx.set_materialize_grads(False)
        ctx.unread, ctx.weight = unread, id(w)
        return F.linear(x, w, bias)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None) -> Any:
        if a is None:
            return None, None, None, None
        x, w = ctx.saved_tensors
        by_x, by_w, by_bias, _ = ctx.needs_input_grad
        skip = by_w and not w._backward_hooks and ctx.unread(ctx.weight)
        return *_LinearBackward.apply(a, x, w, (by_x, by_w, by_bias), skip), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, _: None) -> Any:
        x, w = ctx.saved_tensors
        along = _sum(None if dx is None else F.linear(dx, w), _affine(x, dw, dbias))
        # The tangent of the bias alone.
        return along.expand(*x.shape[:-1], w.shape[0]) if along is not None else None


class _LinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, ...], skip: bool
    ) -> Any:
        ctx.save_for_backward(a, x, w)
        ctx.save_for_forward(a, x, w)
        ctx.set_materialize_grads(False)
        ctx.needed, ctx.skip = needed, skip
        by_x, by_w, by_bias = needed
        weight = _without_value(w) if skip else _by_weight(a, x) if by_w else None
        return a @ w if by_x else None, weight, _rows(a).sum(0) if by_bias else None

    @staticmethod
    def backward(ctx: Any, c_x: Tensor | None, c_w: Tensor | None, c_bias: Tensor | None) -> Any:
        a, x, w = ctx.saved_tensors
        by_a = _sum(None if c_x is None else F.linear(c_x, w), _affine(x, c_w, c_bias))
        _, needs_x, needs_w, *_ = ctx.needs_input_grad
        by_x = a @ c_w if needs_x and c_w is not None else None
        by_w = _by_weight(a, c_x) if needs_w and c_x is not None else None
        return None if by_a is None else by_a.expand_as(a), by_x, by_w, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> Any:
        a, x, w = ctx.saved_tensors
        by_x, by_w, by_bias = ctx.needed
        along_x = along_w = along_bias = None
        if by_x:
            along_x = _sum(None if da is None else da @ w, None if dw is None else a @ dw)
            along_x = torch.zeros_like(x) if along_x is None else along_x
        if ctx.skip:
            along_w = _without_value(w)
        elif by_w:
            of_a = None if da is None else _by_weight(da, x)
            along_w = _sum(of_a, None if dx is None else _by_weight(a, dx))
            along_w = torch.zeros_like(w) if along_w is None else along_w
        if by_bias:
            along_bias = a.new_zeros(a.shape[-1]) if da is None else _rows(da).sum(0)
        return along_x, along_w, along_bias


def _affine(x: Tensor, w: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Return ``x wᵀ + bias`` where either may be missing."""
    return bias if w is None else F.linear(x, w, bias)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return the sum of the two; a missing one counts as zero."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _without_value(w: Tensor) -> Tensor:
    """Return zeros of the weight's shape, in the memory of one number."""
    return w.new_zeros(()).expand_as(w)


def _by_weight(a: Tensor, x: Tensor) -> Tensor:
    return _rows(a).T @ _rows(x)


def _rows(values: Tensor) -> Tensor:
    """Return (B, features) of (..., features)."""
    return values if values.ndim == 2 else values.reshape(-1, values.shape[-1])
