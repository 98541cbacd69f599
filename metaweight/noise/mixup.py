"""mixup: train on convex combinations of pairs of samples.

``x = d x_a + (1 - d) x_b`` with ``d ~ Beta(α, α)``, and the loss combined in the same way.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv:1710.09412).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_number
from metaweight.problems.base.vectors import accumulation_dtype

from .._beta import draw_symmetric_beta
from .._label_loss import checked_reduction, full_precision
from .._labels import UNLABELLED, Labels, among, read_labels, read_values
from .._sample_loss import SampleLoss

Loss = Callable[..., Tensor]


class MixupBatch(NamedTuple):
    """A mixed batch, with the labels and shares that its loss needs."""

    inputs: Tensor
    """``d x_a + (1 - d) x_b``, (B, …)."""

    labels_a: Tensor
    """The labels, (B, …): classes as int64, -1 where there is none, or targets as given."""

    labels_b: Tensor
    """The labels of the partners, (B, …)."""

    d: Tensor
    """Share of each sample itself: one number, or one per sample, (B,)."""


def mixup(
    inputs: Tensor,
    labels: Any,
    alpha: float | Tensor = 0.2,
    *,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    ignore_index: int = UNLABELLED[0],
) -> MixupBatch:
    """Mix each sample with one drawn from the same batch.

    Samples of label -1 or -100 are left as they are, and are no partners of others.

    In a ``training_step`` leave ``generator`` out: torch's own random streams are replayed when a
    hypergradient evaluates the step again, your own generator is not.

    Args:
        inputs: (B, …), floating point.
        labels: (B,) classes of any integer type, or one-hot or other probabilities (B, C).
        alpha: Concentration of the Beta distribution; 0 mixes nothing. A tensor of one number, at
            least 0, may have a graph: the result is differentiable in it.
        per_sample: Draw one ``d`` for each sample rather than one for the batch.
        generator: Source of the draws, on any device (with a tensor ``alpha``, on its device); they
            are made there, so that they do not depend on where ``inputs`` are.
        ignore_index: A further label that stands for none, such as the loss's own.

    Raises:
        ConfigurationError: For a negative ``alpha``, or a tensor of more than one number.
        DataError: For integer inputs, no inputs, or another number of labels.
    """
    targets = _checked_batch(inputs, labels, ignore_index)
    source = inputs.device if generator is None else generator.device
    wide = accumulation_dtype(inputs)
    concentration = _checked_alpha(alpha, source, wide)
    size = len(inputs)
    partners = torch.randperm(size, generator=generator, device=source)
    partners = partners.to(inputs.device, non_blocking=True)
    if isinstance(targets, Labels):
        partners = among(partners, targets.kept)
    d = draw_symmetric_beta(concentration, (size,) if per_sample else (), generator)
    return mix_pairs(
        inputs,
        targets,
        d.to(inputs.device, wide, non_blocking=True),
        partners,
    )


def mix_pairs(
    inputs: Tensor,
    labels: Any,
    d: Tensor,
    partners: Tensor,
    *,
    ignore_index: int = UNLABELLED[0],
) -> MixupBatch:
    """Mix sample ``i`` with sample ``partners[i]``; nothing is drawn.

    Args:
        inputs: (B, …), floating point.
        labels: As for :func:`mixup`.
        d: Share of each sample itself, in [0, 1]: one number, or (B,).
        partners: (B,), int64.
        ignore_index: As there.

    Raises:
        DataError: For inputs, labels, shares or partners of other shapes.
    """
    targets = _checked_batch(inputs, labels, ignore_index)
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
    given = targets.marked() if isinstance(targets, Labels) else targets
    return MixupBatch(mixed, given, given[partners], d)


def mixup_loss(
    logits: Tensor,
    labels_a: Any,
    labels_b: Any,
    d: Tensor,
    *,
    criterion: Loss | SampleLoss = F.cross_entropy,
    reduction: str = "mean",
) -> Tensor:
    """Return ``d loss(logits, a) + (1 - d) loss(logits, b)``.

    With cross-entropy this is the cross-entropy to the mixed one-hot labels. The term of a label of
    -1 or -100 is 0, and its share does not count in the mean.

    Args:
        logits: (B, C), any floating type; computed in single precision or better.
        labels_a: (B,) classes of any integer type, or one-hot or other probabilities (B, C).
        labels_b: The same of the partners.
        d: One number, or (B,).
        criterion: A function or module of ``(logits, labels)``: with ``reduction="none"``, as an
            argument or attribute, or by itself one number per sample.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.

    Raises:
        ConfigurationError: For an unknown reduction.
        LossError: When ``criterion`` does not return one loss per sample.
        DataError: For shares of another shape.
    """
    checked_reduction("mixup_loss", reduction)
    _check_share("mixup_loss", d, len(logits))
    logits = full_precision(logits)
    loss = criterion if isinstance(criterion, SampleLoss) else SampleLoss("mixup_loss", criterion)
    terms = [(loss.read(labels_a, logits), d), (loss.read(labels_b, logits), 1 - d)]
    losses = sum(share * loss.each(logits, labels) for labels, share in terms)
    assert isinstance(losses, Tensor)
    if reduction != "mean":
        return losses if reduction == "none" else losses.sum()
    return losses.sum() / _number(terms, losses)


def mixup_accuracy(logits: Tensor, labels_a: Any, labels_b: Any, d: Tensor) -> Tensor:
    """Return the mean of ``d [ŷ = a] + (1 - d) [ŷ = b]``, a 0-dim tensor, without a host read.

    Labels of -1 or -100 do not count, as in :func:`mixup_loss`.

    Args:
        logits: (B, C).
        labels_a: (B,) classes of any integer type, or one-hot.
        labels_b: The same of the partners.
        d: One number, or (B,).

    Raises:
        DataError: For shares or labels of another shape.
    """
    _check_share("mixup_accuracy", d, len(logits))
    predicted = logits.argmax(dim=1)
    terms = [
        (_classes_of(logits, labels), share) for labels, share in ((labels_a, d), (labels_b, 1 - d))
    ]
    hits = sum(share * (y.kept & (predicted == y.classes)) for y, share in terms)
    assert isinstance(hits, Tensor)
    return hits.sum() / _number(terms, hits)


def _classes_of(logits: Tensor, labels: Any) -> Labels:
    return read_labels(
        labels,
        logits.shape[1],
        shape=logits.shape[:1],
        device=logits.device,
        what="mixup_accuracy received labels",
        of=f" for {len(logits)} rows of logits",
        error=DataError,
    )


def _number(terms: list[tuple[Any, Tensor]], like: Tensor) -> Tensor:
    """Return how many samples count, one with a share of its labels by this share; at least 1 if
    none does."""
    kept = [
        y.kept if isinstance(y, Labels) else torch.ones_like(like, dtype=torch.bool)
        for y, _ in terms
    ]
    shares = sum(torch.where(k, share, 0) for k, (_, share) in zip(kept, terms, strict=True))
    # Where both labels count, the shares sum to 1 up to rounding.
    number = torch.where(kept[0] & kept[1], 1, shares).to(like.dtype).sum()
    return torch.where(number == 0, 1, number)


def _checked_batch(inputs: Tensor, given: Any, ignore_index: int) -> Labels | Tensor:
    """Return one label per input as classes, and targets of another kind as they are."""
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
    if isinstance(given, Labels):
        return given
    labels = read_values(given, "Labels", DataError)
    if labels.ndim == 0 or len(labels) != len(inputs):
        raise DataError(
            f"mixup received labels of shape {tuple(labels.shape)} for {len(inputs)} inputs; give "
            "one label per input."
        )
    labels = labels.to(inputs.device, non_blocking=True)
    if labels.is_floating_point() or labels.ndim > 1:
        return labels
    return read_labels(labels, ignore_index=ignore_index, error=DataError)


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
