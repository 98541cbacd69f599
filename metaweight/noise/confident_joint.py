"""The confident joint, and the labels it contradicts, computed without waiting for the device.

With ``p`` of shape (B, C) and labels y, class j's threshold is the mean confidence of the samples
with its label, ``t_j = mean{p_ij : y_i = j}``. Class j is confident for sample i when
``p_ij ≥ t_j``. The guess of its true class is the confident class or, where there are several, the
largest entry of the whole row. The confident joint counts samples by (label, guess); the labels of
samples off its diagonal are contradicted.

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 2021 (arXiv:1911.00068). Among several confident classes the paper takes the largest of these;
this is cleanlab's rule, which takes the largest of all, so that a class whose own threshold is not
reached can be the guess.

Labels of -1 and -100 are ignored. Nothing here loops over samples or waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaweight._labels import Labels, read_labels

SLACK = 1e-6
"""How far below its threshold a probability still counts as reaching it."""

LEAST_THRESHOLD = 2e-6

UNREACHABLE = 2.0
"""Threshold of a class that no sample is labelled with; no probability reaches it."""


def class_confidence(probabilities: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """Return per class the sum of ``p_ij`` over its samples and their number, both (C,)."""
    read = _read(probabilities, labels)
    classes, labelled = read.classes, read.kept
    own = probabilities.gather(1, classes.unsqueeze(1)).squeeze(1).masked_fill(~labelled, 0.0)
    both = probabilities.new_zeros(2, probabilities.shape[1])
    both.index_add_(1, classes, torch.stack([own, labelled.to(own.dtype)]))
    return both[0], both[1]


def confident_thresholds(probabilities: Tensor, labels: Any) -> Tensor:
    """Return ``t``, (C,), in the dtype of the probabilities.

    Args:
        probabilities: (B, C), single precision or better, rows that sum to 1.
        labels: (B,) classes of any integer type, or one-hot; -1 and -100 are ignored.
    """
    return thresholds_of(*class_confidence(probabilities, labels))


def thresholds_of(sums: Tensor, counts: Tensor) -> Tensor:
    """Return ``t``, (C,), from the sums and counts of :func:`class_confidence`."""
    means = (sums / counts.clamp(min=1.0)).clamp(min=LEAST_THRESHOLD)
    return means.masked_fill(counts == 0, UNREACHABLE)


def confident_guess(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """Return the guess of each sample's true class, (B,), int64; -1 where no class is confident."""
    confident = probabilities >= thresholds - SLACK
    number = confident.sum(1)
    only = confident.to(torch.uint8).argmax(1)
    guess = torch.where(number > 1, probabilities.argmax(1), only)
    return guess.masked_fill(number == 0, -1)


def contradicted(probabilities: Tensor, labels: Any, thresholds: Tensor | None = None) -> Tensor:
    """Return which labels are off the diagonal of the confident joint, (B,), bool.

    Args:
        probabilities: (B, C), single precision or better, rows that sum to 1.
        labels: (B,) classes of any integer type, or one-hot; -1 and -100 are ignored.
        thresholds: (C,); those of this batch when left out.
    """
    read = _read(probabilities, labels)
    if thresholds is None:
        thresholds = confident_thresholds(probabilities, read)
    guess = confident_guess(probabilities, thresholds)
    return (guess != read.classes) & (guess != -1) & read.kept


def confident_joint(probabilities: Tensor, labels: Any) -> Tensor:
    """Return how many samples have each label (row) and each guess (column), (C, C), int64.

    These are raw counts: not calibrated to the class sizes, and the diagonal may hold zeros.
    """
    number = probabilities.shape[1]
    read = _read(probabilities, labels)
    guess = confident_guess(probabilities, confident_thresholds(probabilities, read))
    counted = (guess != -1) & read.kept
    cell = (read.classes * number + guess).masked_fill(~counted, 0)
    joint = torch.zeros(number * number, dtype=torch.int64, device=guess.device)
    return joint.index_add_(0, cell, counted.long()).view(number, number)


def _read(probabilities: Tensor, labels: Any) -> Labels:
    return read_labels(
        labels,
        probabilities.shape[1],
        shape=probabilities.shape[:1],
        device=probabilities.device,
    )
