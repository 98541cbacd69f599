"""MixMatch: guess labels by averaging and sharpening, then mix labelled and unlabelled samples.

``q_i = sharpen(mean_k softmax f(u_ik), T)`` over K views with ``sharpen(q) = softmax(log q / T)``.
Each of all ``(x_l, onehot)`` and ``(u_ik, q_i)`` is mixed with its partner in a shuffled copy of
them: ``x̃ = λ' x + (1-λ') x_partner``, the targets in the same way, ``λ' = max(λ, 1-λ)``,
``λ ~ Beta(α, α)``. The loss is the cross-entropy for the labelled part of the mixtures, the
divergence for the unlabelled part. Labelled samples of label -1 or -100 are
mixed with no other, and do not count.

Source: Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019
(arXiv:1905.02249).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, is_positive

from .._labels import Labels, among, read_labels
from .._sample_loss import mean_of_kept
from .divergences import Divergence, Probabilities, divergence_of
from .interpolation import draw_shares, interpolated
from .method import Consistency, ConsistencyMethod, ConsistencyStep, checked_concentration, compared


@dataclass(frozen=True)
class MixMatch(ConsistencyMethod):
    """Cross-entropy and divergence on mixtures of labelled and unlabelled samples.

    Args:
        temperature: ``T`` above 0; 1 leaves guesses as they are.
        views: ``K``.
        alpha: Concentration of the Beta distribution.
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function.
        per_sample: Draw one ``λ`` for each sample, as the authors' code does, rather than one for
            the batch.
        interleave: Make K + 1 passes of B_l samples, over which the labelled ones are spread; only
            the first updates running statistics, as in the authors' code. Needs as many labelled
            as unlabelled samples. ``False`` makes one pass over all.

    Raises:
        ConfigurationError: For values out of range.
    """

    temperature: float = 0.5
    views: int = 2
    alpha: float = 0.75
    divergence: str | Divergence = "mse"
    per_sample: bool = True
    interleave: bool = False

    makes_main_pass = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        if not is_count(self.views, least=1):
            raise ConfigurationError(f"MixMatch(views={self.views}) sees nothing; give at least 1.")
        checked_concentration("MixMatch", self.alpha)
        divergence_of("MixMatch", self.divergence)

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences and the loss of the labelled samples.

        Raises:
            DataError: For a batch whose halves cannot be interleaved.
        """
        views = [step.augmented, *[step.view() for _ in range(self.views - 1)]]
        with torch.no_grad():
            guesses = torch.stack([step.predict(view).softmax(-1) for view in views]).mean(0)
            guesses = sharpen(guesses, self.temperature)
            size = step.inputs.shape[:1]
            labels = read_labels(step.labels, guesses.shape[1], shape=size)
            targets = torch.cat([_one_hot(labels, guesses), *[guesses] * self.views])
            counted = torch.cat(
                [labels.kept, labels.kept.new_ones(len(targets) - len(labels.kept))]
            )
            partners = torch.randperm(len(targets), device=targets.device)
            partners = among(partners, counted)
            shares = draw_shares(
                self.alpha,
                len(targets),
                targets,
                per_sample=self.per_sample,
                at_least_half=True,
            )
            targets = interpolated(targets, targets[partners], shares)
        embedded = step.embed(torch.cat([step.inputs, *views]))
        logits = self._predict(step, interpolated(embedded, embedded[partners], shares))
        return self._losses(logits, targets, guesses, labels.kept)

    def _predict(self, step: ConsistencyStep, mixed: Tensor) -> Tensor:
        labelled, size = len(step.inputs), len(step.unlabelled)
        if not self.interleave or not labelled:
            return step.classify_and_follow(mixed)
        if labelled != size:
            raise DataError(
                f"MixMatch(interleave=True) received {labelled} labelled and {size} unlabelled "
                "samples; give batches of one size, or use interleave=False."
            )
        first, *others = interleaved(mixed, self.views + 1).chunk(self.views + 1)
        parts = [step.classify_and_follow(first), *[step.classify(other) for other in others]]
        return interleaved(torch.cat(parts), self.views + 1, back=True)

    def _losses(
        self, logits: Tensor, targets: Tensor, guesses: Tensor, kept: Tensor
    ) -> Consistency:
        labelled = len(kept)
        of_labelled = soft_cross_entropy(logits[:labelled], targets[:labelled])
        student, target = logits[labelled:], targets[labelled:]
        divergence = divergence_of("MixMatch", self.divergence)
        values = divergence(student, Probabilities(target, check=False))
        found = compared(values, student, target)
        with torch.no_grad():
            confidence, predicted = guesses.max(-1)
        return Consistency(
            values=values.view(self.views, -1).mean(0),
            confidence=confidence,
            agreement=found.agreement.view(self.views, -1).mean(0),
            predicted=predicted,
            labelled=mean_of_kept(of_labelled, kept),
        )


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(log q / T)``, which neither under- nor overflows; (…, C).

    Raises:
        ConfigurationError: For a temperature that is not above 0.
    """
    _check_temperature(temperature)
    least = torch.finfo(probabilities.dtype).tiny
    return (probabilities.clamp_min(least).log() / temperature).softmax(-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``-Σ_c q_c log p_c`` of each sample, (N,), for logits and targets (N, C)."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def interleaved(values: Tensor, parts: int, *, back: bool = False) -> Tensor:
    """Spread the samples of each of ``parts`` equal parts over all parts, or undo it.

    Args:
        values: (parts · B, …).
        parts: Number of parts.
        back: Undo it.
    """
    size = len(values) // parts
    column = torch.arange(size, device=values.device)
    turn = column * parts // size
    row = torch.arange(parts, device=values.device).unsqueeze(1)
    source = (row + (turn if back else -turn)) % parts
    return values[(source * size + column).flatten()]


def _one_hot(labels: Labels, like: Tensor) -> Tensor:
    """Return (B, C); a row without a label holds zeros."""
    hot = F.one_hot(labels.classes, like.shape[1]).to(like.dtype)
    return hot * labels.kept.unsqueeze(1)


def _check_temperature(temperature: float) -> None:
    if not is_positive(temperature):
        raise ConfigurationError(
            f"A temperature of {temperature} was given; give a finite number above 0, where 1 "
            "changes nothing and less sharpens."
        )
