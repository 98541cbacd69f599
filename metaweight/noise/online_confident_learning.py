"""Training on noisy labels with soft targets learned from the labels that are not contradicted.

``L = α CE(z, y) + (1 - α) mean_i [-Σ_j S_{j y_i} log p_ij]`` with ``p = softmax(z)``. Column c of S
is the soft target of class c. It starts as a smoothed one-hot and becomes, after each epoch, the
mean prediction for class c over the samples whose label the batch's confident joint does not
contradict.

Sources: Zhang et al., "Delving Deep into Label Smoothing", IEEE TIP 2021 (arXiv:2011.12562), for
the soft targets; Northcutt et al., "Confident Learning", JAIR 2021 (arXiv:1911.00068), for the
filter.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed
from torch import Tensor

from metaweight._full_precision import FullPrecisionBuffers
from metaweight._label_loss import labels_of
from metaweight._labels import Labels
from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_count, is_number, is_part

from .confident_joint import UNREACHABLE, class_confidence, contradicted, thresholds_of

CollectBy = Literal["pred", "label", "agree"]
Thresholds = Literal["batch", "ema"]
Reduction = Literal["none", "mean", "sum"]


class OnlineConfidentLearning(FullPrecisionBuffers):
    """Cross-entropy mixed with cross-entropy to soft targets, means of the network's predictions.

    A forward pass in training mode adds to the statistics of the epoch; :meth:`reset` turns them
    into the new targets. In a :class:`~metaweight.problems.Problem` make the criterion part of its
    module (:class:`WithCriterion`, or ``net.criterion = …``): the engine then restores the
    statistics after a hypergradient's evaluations, so that every training step counts once, and
    :class:`OnlineConfidentLearningHook` calls ``reset``.

    With ``torch.distributed`` initialised, a batch consists of the batches of all processes. In
    training mode each forward pass sums over processes the confidence of every class and then the
    collected statistics, C² + 3 C numbers. So every process has to make each pass, and all hold the
    same statistics at any time.

    Args:
        num_classes: C, at least 2.
        alpha: Weight α in [0, 1] of the labels given.
        smoothing: The first targets have ``1 - smoothing`` on the diagonal of S, the rest spread
            over the other classes; in [0, 1].
        by: The class whose target collects a sample's prediction: ``"pred"``, the class predicted;
            ``"label"``, the class given; ``"agree"``, only where both are the same.
        drop_hard: Leave contradicted labels out of the first term too, as terms of zero.
        thresholds: Thresholds of the confident joint: ``"batch"``, those of the batch, or
            ``"ema"``, running means over batches, with which a class absent from a small batch can
            still contradict a label.
        momentum: Weight of the past in the running means, in [0, 1).
        reduction: ``"mean"`` over labelled samples, ``"sum"``, or ``"none"``.
        dtype: Type of the statistics, single precision or better; they keep it when the module is
            cast to half precision.

    Raises:
        ConfigurationError: For a setting out of range, or ``drop_hard`` with running thresholds.

    Attributes:
        targets: S, (C, C).
        sums: Predictions collected this epoch, (C, C), by column.
        counts: Number of predictions collected this epoch, (C,).
    """

    targets: Tensor
    sums: Tensor
    counts: Tensor
    running_thresholds: Tensor

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.5,
        smoothing: float = 0.1,
        *,
        by: CollectBy = "pred",
        drop_hard: bool = False,
        thresholds: Thresholds = "batch",
        momentum: float = 0.9,
        reduction: Reduction = "mean",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_choices(by, thresholds, reduction, drop_hard)
        _check_numbers(num_classes, alpha, smoothing, momentum, dtype)
        self.num_classes = num_classes
        self.alpha = alpha
        self.by = by
        self.drop_hard = drop_hard
        self.momentum = momentum
        self.reduction = reduction
        self.running = thresholds == "ema"
        self.register_buffer("targets", smoothed_targets(num_classes, smoothing, dtype))
        self.register_buffer("sums", torch.zeros_like(self.targets))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        if self.running:
            unknown = torch.full((num_classes,), UNREACHABLE, dtype=dtype)
            self.register_buffer("running_thresholds", unknown)

    def extra_repr(self) -> str:
        return f"{self.num_classes}, alpha={self.alpha}, by={self.by!r}"

    def forward(
        self,
        logits: Tensor,
        labels: Any,
        *,
        alpha: Tensor | float | None = None,
        soft_targets: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, in single precision or better.

        Args:
            logits: (B, C).
            labels: (B,) classes of any integer type, or one-hot; samples of label -1 or -100 are
                ignored. If all are, the loss is 0.
            alpha: α in place of the criterion's own, for instance an upper problem's output.
            soft_targets: S in place of the criterion's own, (C, C), columns that sum to 1.

        Raises:
            LossError: For shapes that do not fit.
        """
        self._check_shapes(logits, soft_targets)
        read = labels_of(logits, labels)
        classes, labelled = read.classes, read.kept
        scores = logits.float() if logits.dtype.itemsize < 4 else logits
        # An ignored row may hold anything: even an infinite one must not reach the gradient.
        log_p = scores.masked_fill(~labelled.unsqueeze(1), 0.0).log_softmax(1)
        hard = -log_p.gather(1, classes.unsqueeze(1)).squeeze(1)
        table = self.targets if soft_targets is None else soft_targets
        soft = -(table.to(log_p.dtype).t().index_select(0, classes) * log_p).sum(1)
        if self.training or self.drop_hard:
            wrong = self._filter(log_p.detach().exp(), read)
            hard = hard.masked_fill(wrong, 0.0) if self.drop_hard else hard
        weight = self.alpha if alpha is None else alpha
        losses = (weight * hard + (1 - weight) * soft).masked_fill(~labelled, 0.0)
        if self.reduction == "none":
            return losses
        total = losses.sum()
        return total if self.reduction == "sum" else total / labelled.sum().clamp(min=1)

    @torch.no_grad()
    def reset(self) -> None:
        """Set the targets to the means collected, and clear the statistics.

        A class without any prediction collected keeps its target. In a program of several
        processes, every process has to call this.
        """
        means = self.sums / self.counts.clamp(min=1)
        self.targets.copy_(torch.where(self.counts > 0, means, self.targets))
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def _filter(self, p: Tensor, labels: Labels) -> Tensor:
        """Return which labels are contradicted; in training mode, collect the others."""
        wrong = contradicted(p, labels, self._thresholds(p, labels))
        if self.training:
            # A half-precision step that overflows is skipped; it must not be collected either.
            kept = labels.kept & ~wrong & p.sum(1).isfinite()
            predicted = p.argmax(1)
            if self.by == "agree":
                kept = kept & (predicted == labels.classes)
            columns = predicted if self.by == "pred" else labels.classes
            collected = p.masked_fill(~kept.unsqueeze(1), 0.0).to(self.sums.dtype)
            self._collect(collected, columns, kept)
        return wrong

    def _thresholds(self, p: Tensor, labels: Labels) -> Tensor | None:
        """Return running thresholds, or those of all processes; ``None`` for the batch's own.

        In training mode running thresholds are updated first.
        """
        if not self.training:
            return self.running_thresholds.to(p.dtype) if self.running else None
        if not self.running and not _is_shared():
            return None
        sums, counts = _over_processes(*class_confidence(p, labels))
        if not self.running:
            return thresholds_of(sums, counts)
        running = self.running_thresholds
        means = (sums / counts.clamp(min=1.0)).to(running.dtype)
        moved = torch.where(running == UNREACHABLE, means, running.lerp(means, 1 - self.momentum))
        known = (counts > 0) & means.isfinite()
        running.copy_(torch.where(known, moved, running))
        return running.to(p.dtype)

    def _collect(self, predictions: Tensor, columns: Tensor, kept: Tensor) -> None:
        sums, counts = self.sums, self.counts
        if _is_shared():
            sums, counts = torch.zeros_like(sums), torch.zeros_like(counts)
        sums.index_add_(1, columns, predictions.t())
        counts.index_add_(0, columns, kept.long())
        if _is_shared():
            # Counts of one batch are exact in any of these types.
            found, number = _over_processes(sums, counts.to(sums.dtype))
            self.sums.add_(found)
            self.counts.add_(number.long())

    def _check_shapes(self, logits: Tensor, soft_targets: Tensor | None) -> None:
        classes = self.num_classes
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise LossError(
                f"OnlineConfidentLearning of {classes} classes received logits of shape "
                f"{tuple(logits.shape)}; give (B, {classes}) and (B,)."
            )
        if soft_targets is not None and soft_targets.shape != (classes, classes):
            raise LossError(
                f"soft_targets of shape {tuple(soft_targets.shape)} were given for {classes} "
                f"classes; give ({classes}, {classes}), column c for class c."
            )


def _is_shared() -> bool:
    """Return whether other processes contribute to the batch."""
    here = torch.distributed.is_available() and torch.distributed.is_initialized()
    return here and torch.distributed.get_world_size() > 1


def _over_processes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over processes of two tensors of one type, by one reduction."""
    if not _is_shared():
        return first, second
    flat = torch.cat([first.reshape(-1), second.reshape(-1)])
    torch.distributed.all_reduce(flat)
    one, other = flat.split([first.numel(), second.numel()])  # type: ignore[no-untyped-call]
    return one.view_as(first), other.view_as(second)


def smoothed_targets(num_classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Return ``1 - smoothing`` on the diagonal and the rest spread evenly, (C, C)."""
    targets = torch.full((num_classes, num_classes), smoothing / (num_classes - 1), dtype=dtype)
    return targets.fill_diagonal_(1 - smoothing)


def _check_choices(by: str, thresholds: str, reduction: str, drop_hard: bool) -> None:
    for name, value, kinds in (
        ("by", by, CollectBy),
        ("thresholds", thresholds, Thresholds),
        ("reduction", reduction, Reduction),
    ):
        if value not in get_args(kinds):
            raise ConfigurationError(
                f"OnlineConfidentLearning({name}={value!r}) was asked for; use one of "
                f"{', '.join(get_args(kinds))}."
            )
    if drop_hard and thresholds == "ema":
        raise ConfigurationError(
            "OnlineConfidentLearning(drop_hard=True, thresholds='ema') would change its loss from "
            "one evaluation of a batch to the next; use thresholds='batch', or drop_hard=False."
        )


def _check_numbers(
    num_classes: int, alpha: float, smoothing: float, momentum: float, dtype: torch.dtype
) -> None:
    if not is_count(num_classes, least=2):
        raise ConfigurationError(
            f"OnlineConfidentLearning(num_classes={num_classes}) was asked for; it compares "
            "classes, use at least 2."
        )
    for name, value in (("alpha", alpha), ("smoothing", smoothing)):
        if not is_number(value, 0, 1):
            raise ConfigurationError(
                f"OnlineConfidentLearning({name}={value}) was asked for; use a number in [0, 1]. "
                "A learned alpha is given to each call instead."
            )
    if not is_part(momentum):
        raise ConfigurationError(
            f"OnlineConfidentLearning(momentum={momentum}) was asked for; use a number in [0, 1)."
        )
    if not dtype.is_floating_point or dtype.itemsize < 4:
        raise ConfigurationError(
            f"OnlineConfidentLearning(dtype={dtype}) was asked for; sums over an epoch need "
            "torch.float32 or torch.float64."
        )
