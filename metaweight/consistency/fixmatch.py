"""FixMatch: pseudo-labels of weakly augmented samples, learned on strongly augmented ones.

``S_i = [max_c p_c(weak(x_i)) ≥ τ] CE(z(strong(x_i)), argmax_c p_c(weak(x_i)))``.

Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
Confidence", NeurIPS 2020 (arXiv:2001.07685).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .divergences import Divergence, divergence_of
from .method import Consistency, ConsistencyMethod, ConsistencyStep, checked_threshold
from .pseudo_label import from_pseudo_labels


@dataclass(frozen=True)
class FixMatch(ConsistencyMethod):
    """Divergence of the prediction on a strong view from the confident class of a weak view.

    Args:
        threshold: ``τ``; a sample of exactly this confidence counts, as in the paper. ``None``
            accepts all.
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function; ``"kl"``
            from a one-hot target is the cross-entropy of the paper.

    Raises:
        ConfigurationError: For values out of range.
    """

    threshold: float | None = 0.95
    divergence: str | Divergence = "kl"

    needs_strong_augment = True

    def __post_init__(self) -> None:
        checked_threshold("FixMatch", self.threshold)
        divergence_of("FixMatch", self.divergence)

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences."""
        assert step.strong_augment is not None
        clean = step.logits
        student = step.predict(step.strong_augment(step.unlabelled))
        return from_pseudo_labels(self, clean, student, accepts=torch.ge)
