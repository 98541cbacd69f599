"""Batch norm with second derivatives made of the same fused passes as the first.

Torch differentiates the backward pass of batch norm as a chain of about twenty elementwise passes,
which on a small convolutional network take as long as the convolutions. Here the same derivative is
computed by channel sums. With ``x̂ = (x - mean) r``, ``r = (var + ε)^(-1/2)``, ``m`` values per
channel, ``P(a) = a - mean(a) - x̂ mean(a x̂)`` and ``y = γ x̂ + β``, for an ``a = ∂F/∂y``::

    ∂F/∂x = γ r P(a),    ∂F/∂γ = Σ a x̂,    ∂F/∂β = Σ a

and of these three along cotangents ``c, c_γ, c_β``, with ``q = mean(c a) - mean(c) mean(a)
- mean(c x̂) mean(a x̂)``::

    by a:  γ r P(c) + c_γ x̂ + c_β
    by γ:  r m q
    by x:  r P(c_γ a - γ r (mean(a x̂) c + mean(c x̂) a)) - γ r² q x̂

``P`` is its own transpose: the pass that finds ``∂F/∂x`` from ``a`` finds ``γ r P(c)`` from ``c``,
and the tangent of ``y`` from that of ``x``.

Source of the layer: Ioffe, Szegedy, "Batch Normalization", ICML 2015 (arXiv:1502.03167).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .torch_internals import is_batched

Three = tuple[Tensor, Tensor, Tensor]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``γ x̂ + β`` for an input (B, C, ...), in place of ``F.batch_norm``.

    Values, first derivatives and running statistics are those of torch. Calls on running
    statistics, in mixed or half precision are torch's own. Third derivatives exist, which torch
    refuses.
    """
    given = [t for t in (input, weight, bias, running_mean, running_var) if t is not None]
    if not (training and _plain(given) and input.ndim > 1 and input.numel() > input.shape[1]):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    channels = input.shape[1]
    gamma = input.new_ones(channels) if weight is None else weight
    beta = input.new_zeros(channels) if bias is None else bias
    output: Tensor = _BatchNorm.apply(input, gamma, beta, running_mean, running_var, momentum, eps)
    return output


def _plain(tensors: list[Tensor]) -> bool:
    return len({(t.dtype, t.device) for t in tensors}) == 1 and tensors[0].dtype in (
        torch.float32,
        torch.float64,
    )


class _Forward(NamedTuple):
    """Values of a forward pass that the derivatives need; statistics per channel."""

    x: Tensor
    gamma: Tensor
    mean: Tensor
    r: Tensor


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        output, mean, r = torch.ops.aten.native_batch_norm(
            x, gamma, beta, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, gamma, mean, r)
        ctx.save_for_forward(x, gamma, mean, r)
        ctx.eps = eps
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        if is_batched(a):
            return *_first(_Forward(*ctx.saved_tensors), a, ctx.eps), None, None, None, None
        return *_BatchNormBackward.apply(a, *ctx.saved_tensors, ctx.eps), None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, dx: Tensor | None, dgamma: Tensor | None, dbeta: Tensor | None, *_: None
    ) -> Tensor:
        where = _Forward(*ctx.saved_tensors)
        zero = torch.zeros_like(where.gamma)
        tangent = _affine_in_x_hat(
            where, zero if dgamma is None else dgamma, zero if dbeta is None else dbeta
        )
        return tangent if dx is None else tangent.add_(_first(where, dx, ctx.eps)[0])


class _BatchNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> Three:
        found = _first(_Forward(x, gamma, mean, r), a, eps)
        ctx.save_for_backward(a, x, gamma, mean, r, *found[1:])
        ctx.save_for_forward(a, x, gamma, mean, r, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, c: Tensor, c_gamma: Tensor, c_beta: Tensor) -> Any:
        a, x, gamma, mean, r, *sums = ctx.saved_tensors
        cotangents = (c, c_gamma, c_beta)
        if torch.is_grad_enabled() or _has_tangent(a, x, gamma, *cotangents):
            return *_second_by_definition(a, x, gamma, ctx.eps, cotangents), None, None, None
        where = _Forward(x, gamma, mean, r)
        by_a, by_x, by_gamma = _second(where, a, sums, ctx.eps, c, c_gamma)
        by_a.add_(_affine_in_x_hat(where, c_gamma, c_beta))
        return by_a, by_x, by_gamma, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, da: Tensor | None, dx: Tensor | None, dgamma: Tensor | None, *_: None
    ) -> Three:
        a, x, gamma, mean, r, *sums = ctx.saved_tensors
        where = _Forward(x, gamma, mean, r)
        # ∂F/∂(x, γ) is a gradient, so that its Jacobian by (x, γ) is symmetric.
        along_x = torch.zeros_like(x) if dx is None else dx
        along_gamma = torch.zeros_like(gamma) if dgamma is None else dgamma
        by_x, by_gamma = _second(where, a, sums, ctx.eps, along_x, along_gamma)[1:]
        if da is None:
            return by_x, by_gamma, torch.zeros_like(gamma)
        more = _first(where, da, ctx.eps)
        return by_x.add_(more[0]), by_gamma.add_(more[1]), more[2]


def _first(where: _Forward, a: Tensor, eps: float) -> Three:
    """Return ``γ r P(a)``, ``Σ a x̂``, ``Σ a``."""
    x, gamma, mean, r = where
    found: Three = torch.ops.aten.native_batch_norm_backward(
        a, x, gamma, None, None, mean, r, True, eps, [True, True, True]
    )
    return found


def _second(
    where: _Forward, a: Tensor, sums: list[Tensor], eps: float, c: Tensor, c_gamma: Tensor
) -> Three:
    """Return ``γ r P(c)`` and the terms by ``x`` and by ``γ``, given ``Σ a x̂`` and ``Σ a``."""
    x, gamma, _, r = where
    m = x.numel() // x.shape[1]
    projected, c_x_hat, c_sum = _first(where, c, eps)
    a_x_hat, a_sum = sums
    ca = (c * a).sum([0, *range(2, x.ndim)])
    q = (ca - (c_sum * a_sum + c_x_hat * a_x_hat) / m) / m
    of_a = r * (c_gamma - gamma * r * c_x_hat / m)
    of_c = -gamma * r * r * a_x_hat / m
    of_x_hat = -(of_a * a_x_hat + of_c * c_x_hat) / m - gamma * r * r * q
    by_x = _affine_in_x_hat(where, of_x_hat, -(of_a * a_sum + of_c * c_sum) / m)
    by_x.addcmul_(a, _per_channel(of_a, x)).addcmul_(c, _per_channel(of_c, x))
    return projected, by_x, r * m * q


def _affine_in_x_hat(where: _Forward, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale x̂ + shift`` in one pass."""
    slope = scale * where.r
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    found: Tensor = torch.ops.aten.native_batch_norm(
        where.x, slope, shift - slope * where.mean, zero, one, False, 0.0, 0.0
    )[0]
    return found


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))


def _has_tangent(*tensors: Tensor) -> bool:
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)  # type: ignore[no-untyped-call]


def _second_by_definition(
    a: Tensor, x: Tensor, gamma: Tensor, eps: float, cotangents: Three
) -> Three:
    """Return the second derivatives with a graph or tangents of their own.

    Composed of elementary operations, since torch's batch norm has no third derivative.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, since ``a`` may itself have been computed from ``x``.
        leaves = [t.view_as(t) for t in (a, x, gamma)]
        leaves = [t if t.requires_grad else t.requires_grad_() for t in leaves]
        beta = torch.zeros_like(gamma).requires_grad_()
        centred = leaves[1] - _channel_means(leaves[1])
        x_hat = centred * (_channel_means(centred * centred) + eps).rsqrt()
        output = x_hat * _per_channel(leaves[2], x) + _per_channel(beta, x)
        first = torch.autograd.grad(output, [*leaves[1:], beta], leaves[0], create_graph=True)
        found = torch.autograd.grad(first, leaves, cotangents, create_graph=again)
    return found[0], found[1], found[2]


def _channel_means(values: Tensor) -> Tensor:
    return values.mean([0, *range(2, values.ndim)], keepdim=True)
