"""Normalisation of the weights of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from metaweight.problems import LossError


def normalise_weights(weights: Tensor) -> Tensor:
    """Return ``n w / Σ w``, so that the mean weight of a batch is 1.

    The weighted mean ``mean_i n w_i l_i / Σ w`` then equals ``Σ w_i l_i / Σ w``, the form of
    Meta-Weight-Net's official code. When all weights are zero they stay zero.

    Raises:
        LossError: For anything but a tensor of floating numbers.
    """
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise LossError(f"normalise_weights received {kind}; give a tensor of floating numbers.")
    total = weights.sum()
    return weights * (weights.numel() / torch.where(total == 0, torch.ones_like(total), total))
