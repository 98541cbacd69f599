"""The Π-model: a network should predict the same for two random views of a sample.

``S_i = D(f(x_i; ξ'), sg f(x_i; ξ))``, same weights, independent noise of augmentation and dropout.

Source: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017
(arXiv:1610.02242), where the squared distance has gradients through both passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .divergences import Divergence, Probabilities, divergence_of
from .method import Consistency, ConsistencyMethod, ConsistencyStep, compared


@dataclass(frozen=True)
class PiModel(ConsistencyMethod):
    """Divergence between two passes of the student.

    Args:
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function.
        target_grad: Whether gradients go through both passes, as in the paper; a function given as
            divergence then has to take ``target_grad=True``.
    """

    divergence: str | Divergence = "mse"
    target_grad: bool = False

    needs_noise = True

    def __post_init__(self) -> None:
        divergence_of("PiModel", self.divergence)

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences."""
        target = step.logits.softmax(-1)
        student = step.predict(step.view())
        divergence: Any = divergence_of("PiModel", self.divergence)
        if self.target_grad:
            divergence = partial(divergence, target_grad=True)
        values = divergence(student, Probabilities(target, check=False))
        return compared(values, student, target.detach())
