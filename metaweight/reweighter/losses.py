"""Losses of a sample, and the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight._sample_loss import SampleLoss
from metaweight.problems import ConfigurationError


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``(f(x) - y)²``, (N,)."""
    return (outputs - targets).square()


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``|f(x) - y|``, (N,)."""
    return (outputs - targets).abs()


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the labels of a sample of their binary cross-entropies, (N,)."""
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


LOSSES: Mapping[str, Any] = {"squared": squared_error, "absolute": absolute_error}


def named_loss(loss: Any) -> Any:
    """Return a loss by its name, or a function as it is.

    Raises:
        ConfigurationError: For another name.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ConfigurationError(
            f"loss={loss!r} was given; use {' or '.join(map(repr, LOSSES))}, or a function of "
            "outputs and y that returns one loss a sample."
        )
    return LOSSES[loss]


def losses_of(who: str, loss: Any, outputs: Tensor, targets: Tensor, like: Tensor) -> Tensor:
    """Return the loss of each sample, (N,), in float64 on the CPU.

    Args:
        who: Who asks, for an error.
        loss: The loss. Only this package's own, and cross-entropy, are taken in float64.
        outputs: Outputs of a network, (N, …), in float64 on the CPU.
        targets: Their targets.
        like: A parameter of the network, in whose type and on whose device others are.
    """
    if loss in (F.cross_entropy, squared_error, absolute_error, binary_cross_entropy):
        own, where = torch.float64, torch.device("cpu")
    else:
        own, where = like.dtype, like.device
    targets = targets.to(where, own if targets.is_floating_point() else targets.dtype)
    with torch.no_grad():
        found = SampleLoss(who, loss).each(outputs.to(where, own), targets)
    return found.reshape(-1).double().cpu()
