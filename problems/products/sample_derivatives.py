"""Directional derivatives ``d_i = <∇_w l_i, v>`` of sample losses, and weighted means of them.

Functions take the sample losses of several micro-batches and return a pair ``(l, d)`` for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..base import vectors
from .displaced import measure_both_sides, measure_one_side
from .second_derivatives import quiet_first_use

Pairs = list[tuple[Tensor, Tensor]]
Pass = Callable[[], Tensor]
"""Computes the sample losses of a batch at the present parameters."""


def forward_mode_derivatives(
    losses: Sequence[Callable[[list[Tensor]], Tensor]],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> Pairs:
    """Return ``(l_i, <∇_w l_i, v>)`` from one pass of dual numbers per batch.

    Args:
        losses: Compute the sample losses with the given tensors instead of ``params``.
        params: ``w``.
        vector: ``v``.
    """
    pairs = []
    with quiet_first_use(), forward_ad.dual_level():
        # Detached, not under no_grad: what a network computes under no_grad counts as a constant.
        duals = [
            forward_ad.make_dual(p.detach(), v)  # type: ignore[no-untyped-call]
            for p, v in zip(params, vector, strict=True)
        ]
        for compute in losses:
            dual = forward_ad.unpack_dual(compute(duals))  # type: ignore[no-untyped-call]
            primal = dual.primal.detach()
            tangent = torch.zeros_like(primal) if dual.tangent is None else dual.tangent.detach()
            pairs.append((primal, tangent))
    return pairs


def central_derivatives(
    ahead: Sequence[Pass],
    behind: Sequence[Pass],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
) -> Pairs:
    """Return ``(l_i, <∇_w l_i, v>)`` from losses at ``w ± eps v``, without a graph.

    The returned losses are the mean of the two, equal to ``l_i(w)`` up to ``O(eps²)``.

    Args:
        ahead: Compute the sample losses of each batch at ``w + eps v``.
        behind: Compute them at ``w - eps v``.
        params: ``w``, displaced in place and restored.
        vector: ``v``.
        inverse_eps: ``1 / eps``.
    """
    shift = vectors.divide(vector, inverse_eps)
    with torch.no_grad():
        plus, minus = measure_both_sides(
            params, shift, lambda: [f() for f in ahead], lambda: [f() for f in behind]
        )
        half = inverse_eps / 2
        return [((p + m) / 2, (p - m) * half) for p, m in zip(plus, minus, strict=True)]


def one_sided_derivatives(
    base: Sequence[Tensor],
    moved: Sequence[Pass],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
) -> Pairs:
    """Return ``(l_i, <∇_w l_i, v>)`` from losses at ``w`` and at ``w + eps v``, without a graph.

    Args:
        base: The sample losses of each batch at ``w``.
        moved: Compute them at ``w + eps v``.
        params: ``w``, displaced in place and restored.
        vector: ``v``.
        inverse_eps: ``1 / eps``.
    """
    shift = vectors.divide(vector, inverse_eps)
    with torch.no_grad():
        ends = measure_one_side(params, shift, lambda: [f() for f in moved])
        return [(b, (m - b) * inverse_eps) for b, m in zip(base, ends, strict=True)]


def weighted_gradient(
    weights: Sequence[Callable[[Tensor], Tensor]], pairs: Pairs, upper: Sequence[Tensor]
) -> list[Tensor]:
    """Return ``∇_θ mean_i V_i(sg(l); θ) sg(d_i)``, averaged over batches.

    Args:
        weights: Compute ``V`` of each batch from its sample losses.
        pairs: ``(l, d)`` of each batch.
        upper: ``θ``.
    """
    total = [torch.zeros_like(t) for t in upper]
    for compute, (losses, directional) in zip(weights, pairs, strict=True):
        found = compute(losses)
        if found.requires_grad:
            gradient = torch.autograd.grad((found * directional).mean(), upper, allow_unused=True)
            total = vectors.add(total, vectors.fill_none(gradient, upper))
    return total if len(pairs) == 1 else vectors.scale(total, 1.0 / len(pairs))
