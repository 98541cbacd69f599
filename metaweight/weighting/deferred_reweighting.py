"""Class weights that begin late in training, when features have been learned from all samples.

::

    criterion = DeferredReweighting(LDAMLoss(counts), class_balanced_weights(counts))
    classifier = Classifier("classifier", module=WithCriterion(net, criterion), optimizer=sgd,
                            train_data_loader=data)  # whose loss is self.module.criterion(…)
    Engine([classifier], config, hooks=[DeferredReweightingHook(0.8)]).run()

Source: DRW in Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
NeurIPS 2019 (arXiv:1906.07413), with the weights of Cui et al. (CVPR 2019).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaweight._label_loss import LabelLoss, full_precision, labels_of
from metaweight._labels import UNLABELLED, read_values
from metaweight._sample_loss import SampleLoss
from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base.settings import is_count, is_part, shown

from .counts import beside, per_class
from .problems import Loss


class DeferredReweighting(LabelLoss):
    """``Σ_i v_{y_i} l_i / Σ_i v_{y_i}``, with ``v_c = 1`` at first and ``v_c = w_c`` once switched.

    In a :class:`~metaweight.problems.Problem` make it part of the module
    (:class:`metaweight.noise.WithCriterion`, or ``net.criterion = …``), so that checkpoints hold
    it, and let a :class:`DeferredReweightingHook` switch it. Elsewhere call :meth:`switch`: never
    switched it is the criterion without weights, switched at the start the weighted one.

    With several processes each divides by the weights in its own share of a batch.

    Args:
        criterion: A function or module of ``(logits, labels)``: with ``reduction="none"``, as an
            argument or attribute, or by itself one number per sample.
        weights: ``w``, one number of at least 0 per class, (C,), such as
            :func:`~metaweight.weighting.class_balanced_weights` returns.
        reduction: ``"mean"``, over the weights as above, ``"sum"`` for ``Σ_i v_{y_i} l_i``, or
            ``"none"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out; that of ``criterion``
            where it has one and this is not given.

    Raises:
        ConfigurationError: For weights of another form, all of them 0, or an unknown reduction.

    Attributes:
        active: Whether the weights are in use, a bool of shape ().
    """

    weights: Tensor
    active: Tensor

    def __init__(
        self,
        criterion: Loss,
        weights: Any,
        *,
        reduction: str = "mean",
        ignore_index: int = -1,
    ) -> None:
        loss = SampleLoss("DeferredReweighting", criterion)
        own = ignore_index in UNLABELLED
        super().__init__(reduction, loss.ignore_index if own else ignore_index)
        self._loss = loss
        self.criterion = criterion
        self.register_buffer("weights", _checked_weights(weights), persistent=False)
        self.register_buffer("active", torch.zeros_like(self.weights[0], dtype=torch.bool))

    def forward(self, logits: Tensor, labels: Any, *, reduction: str | None = None) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            reduction: In place of the module's own.

        Raises:
            LossError: When shapes or types do not fit.
        """
        read = labels_of(logits, labels, self.ignore_index)
        scores = full_precision(logits)
        weights = per_class("DeferredReweighting", self.weights, scores)
        current = torch.where(self.active.to(scores.device), weights, 1.0)
        chosen = torch.where(read.kept, current.index_select(0, read.classes), 0.0)
        losses = chosen * self._loss.each(scores, read)
        kind = self.reduction if reduction is None else reduction
        if kind != "mean":
            return self.reduced(losses, read.kept, kind)
        total = chosen.sum()
        return losses.sum() / total.masked_fill(total == 0, 1.0)

    @torch.no_grad()
    def switch(self, on: bool = True) -> None:
        """Use the weights from now on, or no longer."""
        self.active.fill_(on)


class DeferredReweightingHook(Hook):
    """Switch every :class:`DeferredReweighting` to its weights once a share of the run is over.

    The switch is part of the problem's module and so of its checkpoints. A run that is resumed
    switches at the step at which it would have.

    Args:
        start: A share of the run as a float in [0, 1), or a number of the problem's steps as an
            int. A share is one of ``train_iters``, the steps of a leaf problem. The paper takes
            0.8: epoch 160 of 200.

    Raises:
        ConfigurationError: For another ``start``. At the start of a run, when no problem's module
            holds such a criterion, for a share where one of a problem above others does, or when
            ``EngineConfig(roll_back=True)`` would undo the switch.
    """

    def __init__(self, start: float | int = 0.8) -> None:
        share = isinstance(start, float) and is_part(start)
        if not share and not is_count(start, least=0):
            raise ConfigurationError(
                f"DeferredReweightingHook(start={shown(start)}) is neither a share of a run nor a "
                "number of steps; give a float in [0, 1), or an int of at least 0."
            )
        self.start = start
        self._first = 0

    def run_start(self, engine: Engine) -> None:
        """Find the criteria, and put their switches where they belong at this step."""
        share = isinstance(self.start, float)
        self._first = round(self.start * engine.train_iters) if share else int(self.start)
        found = [(p, criterion) for p in engine.problems for criterion in _criteria(p)]
        if not found:
            raise ConfigurationError(
                "DeferredReweightingHook found no DeferredReweighting in the modules of problems "
                f"{', '.join(p.name for p in engine.problems)}; give one of them "
                "module=metaweight.noise.WithCriterion(network, DeferredReweighting(…))."
            )
        for problem, criterion in found:
            if problem.parents and engine.config.roll_back:
                raise ConfigurationError(
                    f"Problem {problem.name!r} switches to class weights during the run, and "
                    "EngineConfig(roll_back=True) would put the switch back with the rest of the "
                    "module; use roll_back=False."
                )
            if share and problem.children:
                raise ConfigurationError(
                    f"DeferredReweightingHook(start={self.start}) is a share of the steps of a "
                    f"leaf problem, and problem {problem.name!r} steps more seldom; give the "
                    "number of its own steps, as an int."
                )
            criterion.switch(problem.count >= self._first)
        if self._first >= engine.train_iters:
            warnings.warn(
                f"DeferredReweightingHook is to switch after {self._first} steps, but the run has "
                f"{engine.train_iters}: its weights are never used. Give start as a share of the "
                "run, such as 0.8.",
                stacklevel=2,
            )

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Switch at the first step with weights."""
        del engine
        if problem.count == self._first + 1:
            for criterion in _criteria(problem):
                criterion.switch()


def _criteria(problem: Problem) -> list[DeferredReweighting]:
    modules = problem.module.modules() if isinstance(problem.module, nn.Module) else ()
    return [m for m in modules if isinstance(m, DeferredReweighting)]


def _checked_weights(given: Any) -> Tensor:
    values = read_values(given, "DeferredReweighting: weights", ConfigurationError)
    plain = values.ndim == 1 and values.numel() > 0 and not values.is_complex()
    numbers = np.array(values.tolist(), dtype=np.float64) if plain else np.zeros(0)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.any()):
        raise ConfigurationError(
            f"DeferredReweighting received weights of shape {tuple(values.shape)}, "
            f"{shown(numbers.tolist())}; give one finite number of at least 0 per class, not all "
            "of them 0, such as class_balanced_weights(counts)."
        )
    return beside(given, numbers)
