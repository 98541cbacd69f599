"""Pseudo-labels: a class predicted with confidence becomes the label of an unlabelled sample.

``S_i = [max_c p_c(x_i) > τ] CE(z'_i, argmax_c p_c(x_i))`` with ``p`` of the main pass and ``z'`` of
another random view; a rejected sample has loss 0. Another divergence replaces the
cross-entropy.

Source: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
Networks", ICML Workshop 2013, without a threshold; with one: Oliver et al., "Realistic Evaluation
of Deep Semi-Supervised Learning Algorithms", NeurIPS 2018 (arXiv:1804.09170).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_positive

from .divergences import Divergence, Probabilities, divergence_of
from .method import Consistency, ConsistencyMethod, ConsistencyStep, checked_threshold, compared


@dataclass(frozen=True)
class PseudoLabel(ConsistencyMethod):
    """Divergence from the class that a student predicts with confidence.

    Args:
        threshold: ``τ``; a sample of exactly this confidence is rejected, since Oliver et al. ask
            for a larger one. ``None`` accepts all.
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function. ``"kl"``
            from a one-hot target is the cross-entropy.
        another_view: Whether the student predicts on a view of its own; else on that of the main
            pass, at no cost.
        logit_scale: Softens the one-hot target to ``softmax(logit_scale · onehot)``, as Oliver et
            al. have it with 10.

    Raises:
        ConfigurationError: For values out of range.
    """

    threshold: float | None = 0.95
    divergence: str | Divergence = "kl"
    another_view: bool = True
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        checked_threshold("PseudoLabel", self.threshold)
        divergence_of("PseudoLabel", self.divergence)
        if self.logit_scale is not None and not is_positive(self.logit_scale):
            raise ConfigurationError(
                f"PseudoLabel(logit_scale={self.logit_scale}) is not a scale; give a positive "
                "number, or None for one-hot targets."
            )

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences."""
        clean = step.logits
        student = step.predict(step.view()) if self.another_view else clean
        return from_pseudo_labels(self, clean, student, self.logit_scale)


def from_pseudo_labels(
    method: Any,
    clean: Tensor,
    student: Tensor,
    logit_scale: float | None = None,
    accepts: Callable[[Tensor, float], Tensor] = torch.gt,
) -> Consistency:
    """Return the divergence of a student's logits from the confident classes of clean logits.

    Args:
        method: Has a ``threshold`` and a ``divergence``.
        clean: Logits (B_u, C) that give the pseudo-labels.
        student: Logits (B_u, C) that are compared with these labels.
        logit_scale: See :class:`PseudoLabel`.
        accepts: Compares confidences with the threshold.
    """
    name = type(method).__name__
    with torch.no_grad():
        confidence, predicted = clean.softmax(-1).max(-1)
        classes = clean.shape[1]
        hard = F.one_hot(predicted, classes).to(clean.dtype)
        target = hard if logit_scale is None else (hard * logit_scale).softmax(-1)
        accepted = None if method.threshold is None else accepts(confidence, method.threshold)
    if method.threshold is not None and method.threshold <= 1 / classes:
        warnings.warn(
            f"{name}(threshold={method.threshold}) is at most 1/{classes}, which the largest of "
            f"{classes} probabilities always reaches: every sample is accepted.",
            stacklevel=2,
        )
    values = divergence_of(name, method.divergence)(student, Probabilities(target, check=False))
    found = compared(values, student, target, accepted=accepted)
    return Consistency(values, confidence, found.agreement, predicted, accepted)
