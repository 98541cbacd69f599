"""Layers that are linear in their input and in their weight, with weight gradients without values.

To multiply second derivatives with a vector, ``∂<∇_w L, u>/∂w``, autograd needs the graph of
``∇_w L`` but not its value, and computes it all the same: one of the three passes a training step
takes. With ``y = x * w`` and ``a = ∂F/∂y``, such a layer has ``∂F/∂x = x̄(a, w)`` and
``∂F/∂w = w̄(a, x)``, each linear in both arguments, so that along cotangents ``c_x, c_w``::

    by a:  c_x * w + x * c_w        by x:  x̄(a, c_w)        by w:  w̄(a, c_x)

without ``∂F/∂w`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .torch_internals import is_batched, may_have_hooks, wanted

Unread = Callable[[int], bool]
"""Whether nobody reads the value of the gradient of the tensor of that id."""
Needed = tuple[bool, bool, bool]
"""Which gradients are needed: by the input, the weight and the bias."""


class Layer(Protocol):
    """A layer ``y = x * w + bias``."""

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``y``."""

    def backward(
        self, a: Tensor, x: Tensor, w: Tensor | None, needed: Needed
    ) -> list[Tensor | None]:
        """Return ``x̄(a, w)``, ``w̄(a, x)`` and the sum of ``a``, as far as they are needed; ``w``
        is what :meth:`kept` returned, or another in its place."""

    def kept(self, w: Tensor, *, by_x: bool) -> Tensor | None:
        """Return what a backward pass needs of the weight, by the input too or not. What is not
        kept may be written to in between, as where torch computes the layer."""

    def spread(self, bias: Tensor, like: Tensor) -> Tensor:
        """Return what a bias adds to every entry of a ``y`` of the shape of ``like``."""


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
        ctx.save_for_backward(x, layer.kept(w, by_x=ctx.needs_input_grad[0]))
        ctx.save_for_forward(x, w)
        # An x without a tangent then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.unread = layer, unread
        # The gradient of what is computed from others is read, to go on.
        ctx.leaf = (w,) if w.is_leaf else ()
        return layer.forward(x, w, bias)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None) -> Any:
        needed = (False,) * 3 if a is None else wanted(ctx, ctx.needs_input_grad[:3])
        if not any(needed):
            return None, None, None, None, None
        assert a is not None
        x, w = ctx.saved_tensors
        if is_batched(a):
            return *_backward(ctx.layer, a, x, w, needed), None, None
        by_x, by_w, by_bias = needed
        skipped = [t for t in ctx.leaf if by_w and not may_have_hooks(t) and ctx.unread(id(t))]
        valued = by_x, by_w and not skipped, by_bias
        found = _BilinearBackward.apply(a, x, w, ctx.layer, valued, skipped)
        return *found, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, dbias: Tensor | None, *_: None) -> Any:
        x, w = ctx.saved_tensors
        layer: Layer = ctx.layer
        terms = [] if dw is None else [layer.forward(x, dw, dbias)]
        if dx is not None:
            terms.append(layer.forward(dx, w, dbias if dw is None else None))
        if not terms and dbias is not None:
            terms.append(layer.spread(dbias, layer.forward(x, w)))
        return sum(terms[1:], terms[0]) if terms else None


class _BilinearBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        x: Tensor,
        w: Tensor | None,
        layer: Layer,
        needed: Needed,
        skipped: Sequence[Tensor],
    ) -> Any:
        ctx.save_for_backward(a, x, w)
        ctx.save_for_forward(a, x, w)
        # A gradient that no vector belongs to then takes no pass.
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.needed, ctx.skipped = layer, needed, skipped
        return _with_zeros(_backward(layer, a, x, w, needed), skipped)

    @staticmethod
    def backward(ctx: Any, c_x: Tensor | None, c_w: Tensor | None, c_bias: Tensor | None) -> Any:
        a, x, w = ctx.saved_tensors
        layer: Layer = ctx.layer
        of_a, of_x, of_w = wanted(ctx, ctx.needs_input_grad[:3])
        by_a = by_x = by_w = None
        if of_a and c_w is not None:
            by_a = layer.forward(x, c_w, c_bias)
        elif of_a and c_bias is not None:
            by_a = layer.spread(c_bias, a)
        if of_x and c_w is not None:
            by_x = layer.backward(a, x, c_w, (True, False, False))[0]
        if of_a and c_x is not None:
            more = layer.forward(c_x, w)
            by_a = more if by_a is None else by_a + more
        if of_w and c_x is not None:
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
        return _with_zeros([by_x, by_w, by_bias], ctx.skipped)


def _backward(
    layer: Layer, a: Tensor, x: Tensor, w: Tensor | None, needed: Sequence[bool]
) -> list[Tensor | None]:
    by_x, by_w, by_bias = needed
    return layer.backward(a, x, w, (by_x, by_w, by_bias)) if any(needed) else [None, None, None]


def _with_zeros(
    found: Sequence[Tensor | None], skipped: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return gradients by input, weight and bias, zeros for a weight whose values are skipped."""
    by_x, by_w, by_bias = found
    return by_x, torch.zeros_like(skipped[0]) if skipped else by_w, by_bias
