"""Shared parts of the losses on given labels: log-probabilities, reduction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaweight.problems import ConfigurationError, LossError

from ._full_precision import FullPrecisionBuffers
from ._labels import UNLABELLED, Labels, read_labels

REDUCTIONS = ("none", "mean", "sum")


class Prediction(NamedTuple):
    """Predictions of a network for a batch, in single precision or better."""

    log_p: Tensor
    """Log-probabilities, (B, C)."""

    log_p_label: Tensor
    """Log-probability of the given label, (B,); of class 0 where the label is ignored."""

    kept: Tensor
    """Whether the label counts, (B,), bool."""


class LabelLoss(FullPrecisionBuffers):
    """Base of the losses on logits (B, C) and labels (B,): settings they have in common.

    Args:
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples have loss 0 and no gradient.

    Raises:
        ConfigurationError: For another reduction.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = UNLABELLED[0]) -> None:
        super().__init__()
        self.reduction = checked_reduction(type(self).__name__, reduction)
        self.ignore_index = ignore_index

    def read(self, logits: Tensor, labels: Any) -> Prediction:
        """Return log-probabilities of a batch, checked."""
        return predict(logits, labels, self.ignore_index)

    def reduced(self, losses: Tensor, kept: Tensor, reduction: str | None) -> Tensor:
        """Reduce sample losses, by the module's own ``reduction`` where none is given."""
        chosen = self.reduction if reduction is None else reduction
        return reduce(losses, kept, checked_reduction(type(self).__name__, chosen))


def predict(logits: Tensor, labels: Any, ignore_index: int = UNLABELLED[0]) -> Prediction:
    """Return log-probabilities of all classes and of the labels.

    Raises:
        LossError: When shapes or types do not fit, or a label is neither a class nor ignored; the
            latter is checked on the host only, where nothing has to wait.
    """
    read = labels_of(logits, labels, ignore_index)
    log_p = torch.log_softmax(full_precision(logits), dim=1)
    return Prediction(log_p, log_p.gather(1, read.classes.unsqueeze(1)).squeeze(1), read.kept)


def labels_of(
    logits: Tensor, labels: Any, ignore_index: int = UNLABELLED[0], *, required: bool = False
) -> Labels:
    """Return the labels of logits (B, C).

    Raises:
        LossError: As :func:`predict` does, or for a sample without a label where it is required.
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise LossError(
            f"Logits of shape {tuple(logits.shape)} and type {logits.dtype} were given; give "
            "floating-point logits of shape (B, C)."
        )
    return read_labels(
        labels,
        logits.shape[1],
        shape=logits.shape[:1],
        device=logits.device,
        against="for logits of {} classes",
        of=f" were given for {len(logits)} rows of logits",
        ignore_index=ignore_index,
        required=required,
    )


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
