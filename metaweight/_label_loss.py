"""Shared parts of the losses on given labels: log-probabilities, ignored labels, reduction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError

REDUCTIONS = ("none", "mean", "sum")
TORCH_IGNORES = -100
"""The label that torch's own cross-entropy leaves out."""


class Prediction(NamedTuple):
    """Predictions of a network for a batch, in single precision or better."""

    log_p: Tensor
    """Log-probabilities, (B, C)."""

    log_p_label: Tensor
    """Log-probability of the given label, (B,); of class 0 where the label is ignored."""

    kept: Tensor
    """Whether the label counts, (B,), bool."""


class LabelLoss(nn.Module):
    """Base of the losses on logits (B, C) and labels (B,): settings they have in common.

    Args:
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label whose samples have loss 0 and no gradient.

    Raises:
        ConfigurationError: For another reduction.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -1) -> None:
        super().__init__()
        self.reduction = checked_reduction(type(self).__name__, reduction)
        self.ignore_index = ignore_index

    def read(self, logits: Tensor, labels: Tensor) -> Prediction:
        """Return log-probabilities of a batch, checked."""
        return predict(logits, labels, self.ignore_index)

    def reduced(self, losses: Tensor, kept: Tensor, reduction: str | None) -> Tensor:
        """Reduce sample losses, by the module's own ``reduction`` where none is given."""
        chosen = self.reduction if reduction is None else reduction
        return reduce(losses, kept, checked_reduction(type(self).__name__, chosen))


def predict(logits: Tensor, labels: Tensor, ignore_index: int) -> Prediction:
    """Return log-probabilities of all classes and of the labels.

    Raises:
        LossError: When shapes or types do not fit, or a label is neither a class nor
            ``ignore_index``; the latter is checked on the host only, where nothing has to wait.
    """
    kept, classes = checked_labels(logits, labels, ignore_index)
    log_p = torch.log_softmax(full_precision(logits), dim=1)
    return Prediction(log_p, log_p.gather(1, classes.unsqueeze(1)).squeeze(1), kept)


def checked_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return which labels count, and the labels with 0 for the others.

    Raises:
        LossError: As :func:`predict` does.
    """
    check_shapes(logits, labels)
    kept = labels != ignore_index
    classes = torch.where(kept, labels, 0)
    real = type(classes) is Tensor and classes.device.type == "cpu"
    if real and classes.numel() and not torch.compiler.is_compiling():
        _check_range(classes, logits.shape[1])
    return kept, classes


def reduce(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """Reduce sample losses; when no label counts, the result is 0 and still has a graph."""
    losses = torch.where(kept, losses, 0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum().clamp_min(1)


def full_precision(values: Tensor) -> Tensor:
    """Return 16-bit numbers in single precision, others as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


def checked_reduction(who: str, reduction: str) -> str:
    """Return ``reduction``.

    Raises:
        ConfigurationError: When it is unknown.
    """
    if reduction not in REDUCTIONS:
        raise ConfigurationError(
            f"{who}(reduction={reduction!r}) is not one of {', '.join(REDUCTIONS)}; choose one of "
            "these."
        )
    return reduction


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits and labels that do not fit together; no number is read.

    Raises:
        LossError: Naming both shapes and types.
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise LossError(
            f"Logits of shape {tuple(logits.shape)} and type {logits.dtype} were given; give "
            "floating-point logits of shape (B, C)."
        )
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise LossError(
            f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} were given for "
            f"{logits.shape[0]} rows of logits; give int64 labels of shape ({logits.shape[0]},)."
        )


def _check_range(classes: Tensor, number: int) -> None:
    low, high = (int(v) for v in torch.aminmax(classes))
    if low < 0 or high >= number:
        raise LossError(
            f"Labels span {low} to {high} for logits of {number} classes; give labels in "
            f"[0, {number}), or ignore_index for those that are to be left out."
        )
