"""mixup: train on convex combinations of pairs of samples.

``x = d x_a + (1 - d) x_b`` with ``d ~ Beta(α, α)``, and the loss combined in the same way.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv:1710.09412).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import ConfigurationError, DataError, LossError
from metaweight.problems.base.settings import is_number
from metaweight.problems.base.vectors import accumulation_dtype

from .._beta import draw_symmetric_beta
from .._label_loss import checked_reduction, full_precision

SampleLoss = Callable[..., Tensor]


class MixupBatch(NamedTuple):
    """A mixed batch, with the labels and shares that its loss needs."""

    inputs: Tensor
    """``d x_a + (1 - d) x_b``, (B, …)."""

    labels_a: Tensor
    """The labels as given, (B, …)."""

    labels_b: Tensor
    """The labels of the partners, (B, …)."""

    d: Tensor
    """Share of each sample itself: one number, or one per sample, (B,)."""


def mixup(
    inputs: Tensor,
    labels: Tensor,
    alpha: float | Tensor = 0.2,
    *,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> MixupBatch:
    """Mix each sample with one drawn from the same batch.

    In a ``training_step`` leave ``generator`` out: torch's own random streams are replayed when a
    hypergradient evaluates the step again, your own generator is not.

    Args:
        inputs: (B, …), floating point.
        labels: (B,), or (B, C) probabilities.
        alpha: Concentration of the Beta distribution; 0 mixes nothing. A tensor of one number, at
            least 0, may have a graph: the result is differentiable in it.
        per_sample: Draw one ``d`` for each sample rather than one for the batch.
        generator: Source of the draws, on any device (with a tensor ``alpha``, on its device); they
            are made there, so that they do not depend on where ``inputs`` are.

    Raises:
        ConfigurationError: For a negative ``alpha``, or a tensor of more than one number.
        DataError: For integer inputs, no inputs, or another number of labels.
    """
    _check_batch(inputs, labels)
    source = inputs.device if generator is None else generator.device
    wide = accumulation_dtype(inputs)
    concentration = _checked_alpha(alpha, source, wide)
    size = len(inputs)
    partners = torch.randperm(size, generator=generator, device=source)
    d = draw_symmetric_beta(concentration, (size,) if per_sample else (), generator)
    return mix_pairs(
        inputs,
        labels,
        d.to(inputs.device, wide, non_blocking=True),
        partners.to(inputs.device, non_blocking=True),
    )


def mix_pairs(inputs: Tensor, labels: Tensor, d: Tensor, partners: Tensor) -> MixupBatch:
    """Mix sample ``i`` with sample ``partners[i]``; nothing is drawn.

    Args:
        inputs: (B, …), floating point.
        labels: (B,), or (B, C) probabilities.
        d: Share of each sample itself, in [0, 1]: one number, or (B,).
        partners: (B,), int64.

    Raises:
        DataError: For inputs, labels, shares or partners of other shapes.
    """
    _check_batch(inputs, labels)
    _check_share("mix_pairs", d, len(inputs))
    if partners.shape != (len(inputs),) or partners.is_floating_point():
        raise DataError(
            f"mix_pairs received partners of shape {tuple(partners.shape)} and type "
            f"{partners.dtype}; give one position per input, ({len(inputs)},) integers."
        )
    share = d.to(inputs.dtype)
    if share.ndim:
        share = share.reshape(-1, *[1] * (inputs.ndim - 1))
    mixed = share * inputs + (1 - share) * inputs[partners]
    return MixupBatch(mixed, labels, labels[partners], d)


def mixup_loss(
    logits: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    d: Tensor,
    *,
    criterion: SampleLoss = F.cross_entropy,
    reduction: str = "mean",
) -> Tensor:
    """Return ``d loss(logits, a) + (1 - d) loss(logits, b)``.

    With cross-entropy this is the cross-entropy to the mixed one-hot labels.

    Args:
        logits: (B, C), any floating type; computed in single precision or better.
        labels_a: (B,), or (B, C) probabilities.
        labels_b: The same of the partners.
        d: One number, or (B,).
        criterion: ``criterion(logits, labels, reduction="none")``, (B,).
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the batch.

    Raises:
        ConfigurationError: For an unknown reduction.
        LossError: When ``criterion`` does not return one loss per sample.
        DataError: For shares of another shape.
    """
    checked_reduction("mixup_loss", reduction)
    _check_share("mixup_loss", d, len(logits))
    logits = full_precision(logits)
    of_a, of_b = (_losses(criterion, logits, labels) for labels in (labels_a, labels_b))
    losses = d * of_a + (1 - d) * of_b
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def mixup_accuracy(logits: Tensor, labels_a: Tensor, labels_b: Tensor, d: Tensor) -> Tensor:
    """Return the mean of ``d [ŷ = a] + (1 - d) [ŷ = b]``, a 0-dim tensor, without a host read.

    Args:
        logits: (B, C).
        labels_a: (B,), int64.
        labels_b: The same of the partners.
        d: One number, or (B,).

    Raises:
        DataError: For shares or labels of another shape.
    """
    _check_share("mixup_accuracy", d, len(logits))
    predicted = logits.argmax(dim=1)
    for labels in (labels_a, labels_b):
        if labels.shape != predicted.shape:
            raise DataError(
                f"mixup_accuracy received labels of shape {tuple(labels.shape)} for {len(logits)} "
                f"rows of logits; give shape ({len(logits)},)."
            )
    return (d * (predicted == labels_a) + (1 - d) * (predicted == labels_b)).mean()


def _losses(criterion: SampleLoss, logits: Tensor, labels: Tensor) -> Tensor:
    losses = criterion(logits, labels, reduction="none")
    if losses.shape != logits.shape[:1]:
        raise LossError(
            f"The criterion given to mixup_loss returned shape {tuple(losses.shape)} for "
            f"{len(logits)} samples; it must return one loss per sample with reduction='none'."
        )
    return losses


def _check_batch(inputs: Tensor, labels: Tensor) -> None:
    if inputs.ndim == 0 or not len(inputs):
        raise DataError(
            f"mixup received inputs of shape {tuple(inputs.shape)}; give at least one sample, "
            "shape (B, …)."
        )
    if not inputs.is_floating_point():
        raise DataError(
            f"mixup received inputs of type {inputs.dtype}, whose mixtures would be cut to "
            "integers; convert them to floating point first."
        )
    if labels.ndim == 0 or len(labels) != len(inputs):
        raise DataError(
            f"mixup received labels of shape {tuple(labels.shape)} for {len(inputs)} inputs; give "
            "one label per input."
        )


def _check_share(who: str, d: Tensor, number: int) -> None:
    if d.shape not in ((), (number,)):
        raise DataError(
            f"{who} received d of shape {tuple(d.shape)} for {number} samples; give one number, or "
            f"one per sample, ({number},)."
        )


def _checked_alpha(alpha: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1:
            raise ConfigurationError(
                f"mixup received alpha of shape {tuple(alpha.shape)}; give one number."
            )
        return alpha.reshape(())
    if not is_number(alpha, least=0):
        raise ConfigurationError(
            f"mixup(alpha={alpha}) is not a concentration of a Beta distribution; give a finite "
            "number of at least 0, where 0 mixes nothing."
        )
    return torch.full((), alpha, dtype=dtype, device=device)
