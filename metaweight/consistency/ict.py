"""Interpolation Consistency Training: the target of a mixture is the mixture of predictions.

``x̃ = λ x_i + (1-λ) x_j``, ``T = sg(λ q'_i + (1-λ) q'_j)`` with ``q'`` of the teacher,
``S_i = D(f_θ(x̃_i), T_i)``, ``λ ~ Beta(α, α)``.

Source: Verma et al., "Interpolation Consistency Training for Semi-Supervised Learning", IJCAI 2019
(arXiv:1903.03825). Its text mixes probabilities, its published code logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from metaweight.problems import ConfigurationError

from .divergences import Divergence, Probabilities, divergence_of
from .interpolation import draw_shares, interpolated
from .method import Consistency, ConsistencyMethod, ConsistencyStep, checked_concentration, compared

_MIXED = ("probabilities", "logits")


@dataclass(frozen=True)
class ICT(ConsistencyMethod):
    """Divergence of the student on mixed samples from the mixed predictions of a teacher.

    Args:
        alpha: Concentration of the Beta distribution: 0.1 for SVHN, 1 for CIFAR-10 in the paper.
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function.
        mix: Whether ``"probabilities"`` or ``"logits"`` of the teacher are mixed.
        per_sample: Draw one ``λ`` for each sample rather than one for the batch.
        at_least_half: Take ``max(λ, 1 - λ)``.

    Raises:
        ConfigurationError: For values out of range.
    """

    alpha: float = 0.1
    divergence: str | Divergence = "mse"
    mix: Literal["probabilities", "logits"] = "probabilities"
    per_sample: bool = False
    at_least_half: bool = False

    needs_teacher = True

    def __post_init__(self) -> None:
        checked_concentration("ICT", self.alpha)
        divergence_of("ICT", self.divergence)
        if self.mix not in _MIXED:
            raise ConfigurationError(
                f"ICT(mix={self.mix!r}) is not one of {', '.join(_MIXED)}; choose one of these."
            )

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences."""
        x, size = step.augmented, len(step.augmented)
        with torch.no_grad():
            taught = step.teach(x)
            partners = torch.randperm(size, device=x.device)
            shares = draw_shares(
                self.alpha,
                size,
                taught,
                per_sample=self.per_sample,
                at_least_half=self.at_least_half,
            )
            if self.mix == "probabilities":
                taught = taught.softmax(-1)
            target = interpolated(taught, taught[partners], shares)
            if self.mix == "logits":
                target = target.softmax(-1)
        embedded = step.embed(x)
        student = step.classify(interpolated(embedded, embedded[partners], shares))
        divergence = divergence_of("ICT", self.divergence)
        values = divergence(student, Probabilities(target, check=False))
        return compared(values, student, target)
