"""Training on noisy labels that holds on to what the network predicted before it learned by heart.

``L = mean_i [CE(z_i, y_i) + λ log(1 - ⟨p_i, t_i⟩)]`` with ``p = softmax(z)`` clamped to
[1e-4, 1 - 1e-4]. The target of a sample is a running mean of its predictions, a constant in the
loss: each step that draws it sets ``t_i ← β t_i + (1 - β) p_i / Σ_k p_ik`` before it is used, from
0 on. The second term pulls towards the target, and its pull is strongest where the two agree: once
early predictions contradict a label, its gradient is outweighed.

::

    criterion = EarlyLearningRegularisation(len(data), num_classes=10)
    classifier = EarlyLearningClassifier("classifier", module=WithCriterion(net, criterion),
        optimizer=sgd, train_data_loader=TensorLoader(data, 100, with_indices=True))

Source: Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS
2020 (arXiv:2007.00151).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaweight.problems import Config, ConfigurationError, ImplicitProblem, LossError
from metaweight.problems.base.settings import is_count, is_number, is_part
from metaweight.problems.problem import ModuleType

from .._batch import Part
from .._batch_reader import BatchReader
from .._label_loss import LabelLoss, labels_of, predict
from .._places import read_places

LEAST = 1e-4
"""The smallest probability, which keeps the logarithm finite."""


class EarlyLearningRegularisation(LabelLoss):
    """Cross-entropy and ``λ log(1 - ⟨p_i, t_i⟩)``, the early-learning regularisation.

    In training mode a pass first moves the targets of its samples. In a loop of your own that is
    one pass a step. In a program make it the criterion of an :class:`EarlyLearningClassifier`,
    whose batches hold the targets from before the step: a hypergradient then evaluates the same
    loss again, and every step moves targets once.

    Samples without a label are left out, their targets stay. So do targets for predictions that are
    not finite.

    Args:
        num_samples: N, the number of positions, at least 1.
        num_classes: C, at least 2.
        beta: ``β``, the share of the past in a target, in [0, 1). The paper takes 0.7 for CIFAR-10
            and 0.9 for CIFAR-100.
        lam: ``λ``, at least 0; 3 and 7 there.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.
        dtype: Type of the targets, single precision or better; they keep it when the module is cast
            to half precision.

    Raises:
        ConfigurationError: For a setting out of range or an unknown reduction.

    Attributes:
        targets: The targets of all samples, (N, C).
    """

    targets: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        beta: float = 0.7,
        lam: float = 3.0,
        reduction: str = "mean",
        ignore_index: int = -1,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(reduction, ignore_index)
        counts = is_count(num_samples, least=1) and is_count(num_classes, least=2)
        if not (counts and is_part(beta) and is_number(lam, 0)):
            raise ConfigurationError(
                f"EarlyLearningRegularisation(num_samples={num_samples}, "
                f"num_classes={num_classes}, beta={beta}, lam={lam}) is out of range; give at "
                "least 1 sample, 2 classes, beta in [0, 1) and a finite lam of at least 0."
            )
        if not dtype.is_floating_point or dtype.itemsize < 4:
            raise ConfigurationError(
                f"EarlyLearningRegularisation(dtype={dtype}) was asked for; running means need "
                "torch.float32 or torch.float64."
            )
        self.beta = beta
        self.lam = lam
        self.register_buffer("targets", torch.zeros(num_samples, num_classes, dtype=dtype))

    def forward(
        self,
        logits: Tensor,
        labels: Any,
        indices: Any,
        *,
        previous: Tensor | None = None,
        reduction: str | None = None,
    ) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            indices: Positions of the samples, (B,) integers in [0, N).
            previous: Targets from before the step, (B, C), in place of the present ones.
            reduction: In place of the module's own.

        Raises:
            LossError: When shapes or types do not fit.
            DataError: For indices that are no positions; their range is checked on the host only.
        """
        read = labels_of(logits, labels, self.ignore_index)
        classes = self.targets.shape[1]
        if logits.shape[1] != classes:
            raise LossError(
                f"EarlyLearningRegularisation of {classes} classes received logits of shape "
                f"{tuple(logits.shape)}; give (B, {classes})."
            )
        log_p, log_p_label, kept = predict(logits, read)
        p = log_p.exp().clamp(LEAST, 1 - LEAST)
        targets = self._targets(p.detach(), self.positions(indices, len(p)), kept, previous)
        held = self.lam * torch.log1p(-(targets * p).sum(1))
        return self.reduced(held - log_p_label, kept, reduction)

    def positions(self, indices: Any, size: int | None = None) -> Tensor:
        """Return positions of samples as int64 on the device of the targets.

        Args:
            indices: (B,) integers in [0, N).
            size: B, where it is known.

        Raises:
            DataError: For anything else; the range is checked on the host only.
        """
        number = len(self.targets)
        places = read_places(
            "EarlyLearningRegularisation",
            indices,
            number,
            size=size,
            table=f"num_samples={number}",
        )
        return places.to(self.targets.device, non_blocking=True)

    @torch.no_grad()
    def _targets(self, p: Tensor, places: Tensor, kept: Tensor, previous: Tensor | None) -> Tensor:
        """Return the targets of a batch, moved by its predictions in training mode."""
        before = self.targets.index_select(0, places) if previous is None else previous
        before = before.to(p.dtype)
        if not self.training:
            return before
        moved = self.beta * before + (1 - self.beta) * p / p.sum(1, keepdim=True)
        known = kept & p.sum(1).isfinite()
        after = torch.where(known.unsqueeze(1), moved, before)
        self.targets.index_copy_(0, places, after.to(self.targets.dtype))
        return after


class EarlyLearningBatch(NamedTuple):
    """A batch with all a step depends on, so that a hypergradient finds the same loss again."""

    inputs: Any
    """What the network is called with."""

    labels: Any
    """As the loader gives them."""

    indices: Tensor
    """Positions of the samples, (B,), int64."""

    targets: Tensor
    """Their targets from before the step, (B, C)."""


class EarlyLearningClassifier(ImplicitProblem[ModuleType]):
    """A classifier trained by :class:`EarlyLearningRegularisation`, below others or alone.

    Batches are ``(inputs, labels, indices, …)``, or mappings with ``"indices"``. Without a config
    it is differentiated exactly, through its optimizer steps: a finite difference
    (``type="darts"``) would also differentiate through the targets.

    It runs in one process: each of several would know only the predictions for its own share.

    Args:
        name: Its name.
        config: Its settings; ``Config(type="unroll")`` when left out.
        module: A network with an :class:`EarlyLearningRegularisation` as its ``criterion``, such as
            :class:`WithCriterion`, so that checkpoints hold the targets.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: When the module has no such criterion; in an engine of several
            processes.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        module: ModuleType,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        **problem: Any,
    ) -> None:
        config = Config(type="unroll") if config is None else config
        super().__init__(name, config, module, **problem)
        if not isinstance(getattr(module, "criterion", None), EarlyLearningRegularisation):
            raise ConfigurationError(
                f"EarlyLearningClassifier {name!r} received a module without an "
                "EarlyLearningRegularisation as its criterion; give it module=WithCriterion("
                "network, EarlyLearningRegularisation(num_samples, num_classes))."
            )
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def build(self, device: torch.device, *, channels_last: bool = False) -> None:
        """Build what the constructor was not given.

        Raises:
            ConfigurationError: In a program of several processes.
        """
        if self.step_state.processes.world > 1:
            raise ConfigurationError(
                f"EarlyLearningClassifier {self.name!r} is in a program of "
                f"{self.step_state.processes.world} processes, of which each would keep the "
                "targets of its own share of the samples; run it in one process."
            )
        super().build(device, channels_last=channels_last)

    def get_batch(self) -> EarlyLearningBatch:
        """Return the next batch, with the targets of its samples.

        Raises:
            DataError: When it has no positions, or they are out of range.
        """
        parts = self._reader.read(self.get_batch_single_loader(0))
        criterion = self._criterion
        places = criterion.positions(parts.indices)
        targets = criterion.targets.index_select(0, places)
        return EarlyLearningBatch(parts.inputs, parts.labels, places, targets)

    def training_step(self, batch: EarlyLearningBatch) -> Tensor:
        """Return the loss of a batch."""
        logits = self._reader.predict(self.module, batch.inputs)
        loss: Tensor = self._criterion(logits, batch.labels, batch.indices, previous=batch.targets)
        return loss

    @property
    def _criterion(self) -> EarlyLearningRegularisation:
        found: Any = self.module.criterion
        return found  # type: ignore[no-any-return]
