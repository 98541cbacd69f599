"""Directional derivatives ``d_i = <∇_w l_i, v>`` of sample losses, and weighted means of them.

Functions take the sample losses of several micro-batches and return a pair ``(l, d)`` for each,
``l`` with the features that go with the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..base import vectors
from ..recording.samples import Samples, midway
from .displaced import measure_both_sides, measure_one_side
from .recorded_loss import gradient_of
from .second_derivatives import quiet_first_use

Pairs = list[tuple[Samples, Tensor]]
Pass = Callable[[], Samples]
"""Computes the sample losses of a batch at the present parameters."""


def forward_mode_derivatives(
    losses: Sequence[Callable[[list[Tensor]], Samples]],
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
            found, tangent = compute(duals).parts()
            pairs.append((found, torch.zeros_like(found.losses) if tangent is None else tangent))
    return pairs


def central_derivatives(
    ahead: Sequence[Pass],
    behind: Sequence[Pass],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
) -> Pairs:
    """Return ``(l_i, <∇_w l_i, v>)`` from losses at ``w ± eps v``, without a graph.

    The returned losses and features are the mean of the two, equal to those at ``w`` up to
    ``O(eps²)``.

    Args:
        ahead: Compute the sample losses of each batch at ``w + eps v``.
        behind: Compute them at ``w - eps v``.
        params: ``w``, displaced in place and restored.
        vector: ``v``; a spare one is emptied.
        inverse_eps: ``1 / eps``.
    """
    with torch.no_grad():
        plus, minus = measure_both_sides(
            params,
            vector,
            inverse_eps,
            lambda: [f() for f in ahead],
            lambda: [f() for f in behind],
        )
        half = inverse_eps / 2
        return [
            (midway(p, m), (p.losses - m.losses) * half) for p, m in zip(plus, minus, strict=True)
        ]


def one_sided_derivatives(
    base: Sequence[Samples],
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
        vector: ``v``; a spare one is emptied.
        inverse_eps: ``1 / eps``.
    """
    with torch.no_grad():
        ends = measure_one_side(params, vector, inverse_eps, lambda: [f() for f in moved])
        return [(b, (m.losses - b.losses) * inverse_eps) for b, m in zip(base, ends, strict=True)]


def weighted_gradient(
    weights: Sequence[Callable[[Samples], Tensor]], pairs: Pairs, upper: Sequence[Tensor]
) -> list[Tensor]:
    """Return ``∇_θ mean_i V_i(sg(l); θ) sg(d_i)``, averaged over batches.

    Args:
        weights: Compute ``V`` of each batch from its sample losses.
        pairs: ``(l, d)`` of each batch.
        upper: ``θ``.
    """
    total: list[Tensor] | None = None
    for compute, (samples, directional) in zip(weights, pairs, strict=True):
        gradient = gradient_of((compute(samples) * directional).mean(), upper)
        total = gradient if total is None else vectors.add(total, gradient)
    assert total is not None
    if len(pairs) > 1:
        return vectors.scale(total, 1.0 / len(pairs))
    taken: set[int] = set()
    return [vectors.own(t, like, taken) for t, like in zip(total, upper, strict=True)]
