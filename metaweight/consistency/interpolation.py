"""Mixtures of samples and of their targets, for ICT and MixMatch."""

from __future__ import annotations

import torch
from torch import Tensor

from metaweight.problems.base.vectors import accumulation_dtype

from .._beta import draw_symmetric_beta


def draw_shares(
    alpha: float, size: int, like: Tensor, *, per_sample: bool, at_least_half: bool
) -> Tensor:
    """Draw mixing shares from Beta(α, α), (B,) or one number, from torch's stream of the device.

    Args:
        alpha: ``α``, at least 0, where 0 gives 1.
        size: B.
        like: A tensor of the dtype and on the device wanted.
        per_sample: One for each sample rather than one for all.
        at_least_half: Take ``max(λ, 1 - λ)``, so that a mixture resembles its first sample.
    """
    concentration = torch.full((), alpha, dtype=accumulation_dtype(like), device=like.device)
    shares = draw_symmetric_beta(concentration, (size,) if per_sample else (), None)
    if at_least_half:
        shares = torch.maximum(shares, 1 - shares)
    return shares.to(like.dtype)


def interpolated(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Return ``λ first + (1 - λ) second`` for (B, …) and shares (B,) or of no dimension."""
    if shares.ndim:
        shares = shares.reshape(-1, *[1] * (first.ndim - 1))
    shares = shares.to(first.dtype)
    return shares * first + (1 - shares) * second
