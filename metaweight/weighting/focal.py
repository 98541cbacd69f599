"""Focal loss.

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017 (arXiv:1708.02002).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight._label_loss import REDUCTIONS, full_precision, labels_of, reduce
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_number


def focal_loss(
    logits: Tensor,
    labels: Any,
    gamma: float = 2.0,
    reduction: str = "mean",
    ignore_index: int = -1,
) -> Tensor:
    """Return ``-(1 - p_y)^γ log p_y`` with ``p = softmax(logits)``.

    Args:
        logits: (B, C), any floating type; computed in single precision or better.
        labels: (B,) classes of any integer type, or one-hot.
        gamma: 0 gives cross-entropy; 2 in the paper.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples have loss 0 and no gradient.

    Raises:
        ConfigurationError: For a negative ``gamma`` or another reduction.
        LossError: For logits or labels of another shape or type, or, on the host, labels that are
            not classes.
    """
    if not is_number(gamma, least=0) or reduction not in REDUCTIONS:
        raise ConfigurationError(
            f"focal_loss(gamma={gamma}, reduction={reduction!r}) needs gamma >= 0 and a reduction "
            "of 'none', 'mean' or 'sum'."
        )
    read = labels_of(logits, labels, ignore_index)
    entropy = F.cross_entropy(full_precision(logits), read.classes, reduction="none")
    # expm1 keeps the digits of 1 - p_y where p_y is close to 1. The result is never exactly 0,
    # where a power below 1 has no finite derivative.
    doubt = (-(-entropy).expm1()).clamp_min(torch.finfo(entropy.dtype).tiny)
    losses = doubt**gamma * entropy if gamma else entropy
    return reduce(losses, read.kept, reduction)
