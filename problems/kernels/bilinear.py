"""Layers that are linear in their input and in their weight, with weight gradients without values.

To multiply second derivatives with a vector, ``∂<∇_w L, u>/∂w``, autograd needs the graph of
``∇_w L`` but not its value, and computes it all the same: one of the three passes a training step
takes. With ``y = x * w`` and ``a = ∂F/∂y``, such a layer has ``∂F/∂x = x̄(a, w)`` and
``∂F/∂w = w̄(a, x)``, each linear in both arguments, so that along cotangents ``c_x, c_w``::

    by a:  c_x * w + x * c_w        by x:  x̄(a, c_w)        by w:  w̄(a, c_x)

without ``∂F/∂w`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .torch_internals import may_have_hooks, wanted

Unread = Callable[[int], bool]
"""Whether nobody reads the value of the gradient of the tensor of that id."""
Needed = tuple[bool, bool, bool]
"""Which gradients are needed: by the input, the weight and the bias."""


class Layer(Protocol):
    """A layer ``y = x * w + bias``."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``y``."""

    def backward(self, a: Tensor, x: Tensor, w: Tensor, needed: Needed) -> list[Tensor | None]:
        """Return ``x̄(a, w)``, ``w̄(a, x)`` and the sum of ``a``, as far as they are needed."""


def bilinear(layer: Layer, unread: Unread, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``y`` of a layer.

    Args:
        layer: The layer.
        unread: Asked in every backward pass about the id of the weight, unless it has hooks.
        x: The input.
        w: The weight.
        bias: The bias, if any.
    """
    output: Tensor = _Bilinear.apply(x, w, bias, layer, unread)
    return output


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, layer: Layer, unread: Unread
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)
        # An x without a tangent then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.unread, ctx.weight = layer, unread, id(w)
        return layer.forward(x, w, bias)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None) -> Any:
        if a is None:
            return None, None, None, None, None
        x, w = ctx.saved_tensors
        needed = by_x, by_w, by_bias = wanted(ctx, ctx.needs_input_grad[:3])
        if not any(needed):
            return None, None, None, None, None
        skip = by_w and not may_have_hooks(w) and ctx.unread(ctx.weight)
        valued = by_x, by_w and not skip, by_bias
        found = _BilinearBackward.apply(a, x, w, ctx.layer, valued, skip)
        return *found, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Any:
        x, w = ctx.saved_tensors
        zero = torch.zeros_like(w) if dw is None else dw
        tangent = ctx.layer.forward(x, zero, dbias)
        return tangent if dx is None else tangent + ctx.layer.forward(dx, w)


class _BilinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, w: Tensor, layer: Layer, needed: Needed, skip: bool
    ) -> Any:
        ctx.save_for_backward(a, x, w)
        ctx.save_for_forward(a, x, w)
        # A gradient that no vector belongs to then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.needed, ctx.skip = layer, needed, skip
        by_x, by_w, by_bias = _backward(layer, a, x, w, needed)
        return by_x, torch.zeros_like(w) if skip else by_w, by_bias

    @staticmethod
    def backward(ctx: Any, c_x: Tensor | None, c_w: Tensor | None, c_bias: Tensor | None) -> Any:
        a, x, w = ctx.saved_tensors
        layer: Layer = ctx.layer
        of_a, of_x, of_w = wanted(ctx, ctx.needs_input_grad[:3])
        by_a = by_x = by_w = None
        if of_a and not (c_w is None and c_bias is None):
            by_a = layer.forward(x, torch.zeros_like(w) if c_w is None else c_w, c_bias)
        if of_x and c_w is not None:
            by_x = layer.backward(a, x, c_w, (True, False, False))[0]
        if c_x is not None:
            if of_a:
                more = layer.forward(c_x, w)
                by_a = more if by_a is None else by_a + more
            if of_w:
                by_w = layer.backward(a, c_x, w, (False, True, False))[1]
        return by_a, by_x, by_w, None, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> Any:
        a, x, w = ctx.saved_tensors
        layer, needed = ctx.layer, ctx.needed
        along_a = torch.zeros_like(a) if da is None else da
        by_x, by_w, by_bias = _backward(layer, along_a, x, w, needed)
        if by_x is not None and dw is not None:
            by_x = by_x + layer.backward(a, x, dw, (True, False, False))[0]
        if by_w is not None and dx is not None:
            by_w = by_w + layer.backward(a, dx, w, (False, True, False))[1]
        return by_x, torch.zeros_like(w) if ctx.skip else by_w, by_bias


def _backward(layer: Layer, a: Tensor, x: Tensor, w: Tensor, needed: Needed) -> list[Tensor | None]:
    return layer.backward(a, x, w, needed) if any(needed) else [None, None, None]
