"""A problem trained on labelled and unlabelled samples together.

::

    average = EMAHook("student", beta=0.95, warm_up="mean_teacher", validate_teacher=True)
    student = SemiSupervisedProblem("student", method=MeanTeacher(), teacher=average, module=net,
                                    optimizer=adam, augment=CropFlip(2),
                                    train_data_loader=(labelled, unlabelled))
    Engine([student], EngineConfig(train_iters=5000),
           hooks=[RampHook(student, Ramp(weight=8.0)), average]).run()
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from metaweight.averaging import EMAHook
from metaweight.problems import Config, ConfigurationError, DataError, ImplicitProblem, LossError
from metaweight.problems.problem import ModuleType
from metaweight.problems.state.random_streams import seeded_streams

from .._batch import Part
from .._batch_reader import BatchReader
from .._label_loss import full_precision, predict
from .._labels import read_labels
from ._checks import (
    check_gate,
    check_settings,
    check_weights,
    costs_nothing_to_read,
    require_finite,
)
from .batch import SemiSupervisedBatch, read_pair
from .divergences import entropy
from .gates import UnlabelledFeatures
from .method import Consistency, ConsistencyMethod, ConsistencyStep, Network, Transform, unchanged

NormaliseBy = Literal["part", "batch"]


class SemiSupervisedProblem(ImplicitProblem[ModuleType]):
    """A problem trained on ``L_l + c (1/B_u) Σ_i v_i S_i``, with ``S`` of a consistency method.

    ``L_l`` is the cross-entropy of the labelled samples, ``c`` the :attr:`consistency_weight`,
    which a :class:`~metaweight.consistency.RampHook` may raise, and ``v`` the method's acceptance,
    times the weights of an upper problem where there is one.

    Only the main pass, over labelled and unlabelled inputs together, updates running statistics and
    draws from the random streams of the run. The other passes of a method use the statistics of
    their own batch and draw their noise from a separate stream, seeded batch by batch. So the
    supervised part of a run is the same for every method except MixMatch, whose main pass is over
    its mixtures. The teacher is the average kept by an :class:`~metaweight.averaging.EMAHook`;
    evaluate it with ``validate_teacher=True``.

    Args:
        name: Its name.
        config: Its settings; ``Config(type="unroll")``, which is exact, when left out.
        method: One of this package's, or your own.
        consistency_weight: ``c``, where no hook sets it.
        entropy_weight: Weight of the entropy of what is predicted for unlabelled samples; 0.06
            beside VAT in Oliver et al. (2018).
        normalise: Whether the two terms are divided by the numbers of their own ``"part"``, or both
            by the size of the whole ``"batch"``, B_l + B_u, as in that protocol; the latter
            counts samples without a label too.
        include_labelled: Whether the consistency loss covers the labelled inputs too.
        augment: Random view of inputs, drawn from torch's streams; also of labelled ones.
        strong_augment: A more strongly augmented view, for FixMatch.
        network: How to perturb and mix something other than the inputs; see :class:`Network`.
        teacher: The hook that averages this problem.
        gate: Name of an upper problem that turns
            :class:`~metaweight.consistency.UnlabelledFeatures` into weights (B_u,).
        seed: Seed of the noise of the consistency passes.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there, of what ``network.classify`` returns.
        module: Its network.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`. The loaders are a pair of any lengths, of batches
            ``(inputs, labels, …)`` and of batches ``inputs`` or ``(inputs, …)``, or of mappings;
            the third element of an unlabelled batch, or its ``"indices"``, holds positions. Samples
            of label -1 or -100 do not count in the labelled loss.

    Attributes:
        method: The method.
        consistency_weight: ``c`` of the next batch.
        average: The hook that averages the problem, or none.
        gated_by: Name of the upper problem that weights unlabelled samples, or none.
        reader: Where the parts of batches are.

    Raises:
        ConfigurationError: For a setting that is unknown, out of range or missing.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        method: ConsistencyMethod,
        consistency_weight: float = 1.0,
        entropy_weight: float = 0.0,
        normalise: NormaliseBy = "part",
        include_labelled: bool = False,
        augment: Transform | None = None,
        strong_augment: Transform | None = None,
        network: Network | None = None,
        teacher: EMAHook | None = None,
        gate: str | None = None,
        seed: int = 0,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        config = Config(type="unroll") if config is None else config
        super().__init__(name, config, module, **problem)
        check_settings(name, method, teacher, strong_augment)
        check_weights(name, consistency_weight, entropy_weight)
        if normalise not in ("part", "batch"):
            raise ConfigurationError(
                f"Problem {name!r} received normalise={normalise!r}, which is not one of part, "
                "batch; choose one of these."
            )
        self.method = method
        self.consistency_weight = consistency_weight
        self._entropy_weight = entropy_weight
        self._normalise = normalise
        self._include_labelled = include_labelled
        self._augment = unchanged if augment is None else augment
        self._strong_augment = strong_augment
        self.average = teacher
        self.gated_by = gate
        self.reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)
        network = Network() if network is None else network
        self._network = network.finding(self.reader.find_tensor)
        # Not torch's generator: its numbers are tensors, each to be read.
        self._noise = np.random.RandomState(seed)
        self._looked = False

    def get_batch(self) -> SemiSupervisedBatch:
        """Return the next labelled and unlabelled batch, with the weight and seed of this step.

        Raises:
            DataError: When the problem does not have two loaders, or they give something else.
            ConfigurationError: When an upper problem differentiates through several steps of a
                student with a teacher.
        """
        if len(self.source.loaders) != 2:
            raise DataError(
                f"Problem {self.name!r} has {len(self.source.loaders)} loader(s); give a pair, "
                "train_data_loader=(labelled, unlabelled)."
            )
        recording = self.step_state.trajectory.recording
        if self.method.needs_teacher and recording.parameters and recording.updates > 1:
            raise ConfigurationError(
                f"Problem {self.name!r} is differentiated through its last {recording.updates} "
                "steps, but its teacher changes with every step and its earlier states are not "
                "kept; use Config(unroll_steps=1), or a method without a teacher."
            )
        given, pool = (self.get_batch_single_loader(i) for i in (0, 1))
        return read_pair(
            self.reader,
            given,
            pool,
            float(self.consistency_weight),
            int(self._noise.randint(2**62, dtype=np.int64)),
        )

    def training_step(self, batch: SemiSupervisedBatch) -> Mapping[str, Tensor]:
        """Return the loss and its parts."""
        inputs = self._augment(batch.inputs) if len(batch.inputs) else batch.inputs
        pool = torch.cat([batch.inputs, batch.unlabelled]) if self._include_labelled else None
        unlabelled = batch.unlabelled if pool is None else pool
        augmented = self._augment(unlabelled) if len(unlabelled) else unlabelled
        if not len(unlabelled):
            loss = self._labelled_loss(self._main_pass(inputs), batch.labels, len(inputs))
            return {"loss": loss, "labelled": loss.detach()}
        logits = None
        if not self.method.makes_main_pass:
            logits = self._main_pass(torch.cat([inputs, augmented]))
        size = len(inputs)
        step = ConsistencyStep(
            self.module,
            self._network,
            inputs,
            batch.labels,
            unlabelled,
            augmented,
            inputs.new_empty(0) if logits is None else logits[size:],
            self._teacher(),
            self._augment,
            self._strong_augment,
        )
        with seeded_streams(unlabelled.device, batch.seed):
            found = self.method(step)
        self._look_once(found)
        if logits is None:
            assert found.labelled is not None
            labelled = found.labelled
            if self._normalise == "batch":
                counted = read_labels(batch.labels).kept.sum().to(labelled.dtype)
                labelled = labelled * (counted / (size + len(unlabelled)))
        else:
            labelled = self._labelled_loss(logits[:size], batch.labels, size + len(unlabelled))
        return self._together(batch, step, labelled, found)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the module, optimizer, scheduler, loss scaler, and of the noise."""
        return super().state_dict() | {
            "noise": self._noise.get_state(legacy=False),
            "consistency_weight": self.consistency_weight,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if "noise" in state_dict:
            self._noise.set_state(state_dict["noise"])
            self.consistency_weight = state_dict["consistency_weight"]

    def features(self, found: Consistency, indices: Tensor | None) -> UnlabelledFeatures:
        """Return the features by which an upper problem weights unlabelled samples."""
        return UnlabelledFeatures(
            found.values.detach(), found.confidence, found.agreement, found.predicted, indices
        )

    def _teacher(self) -> nn.Module | None:
        if self.average is None or not self.method.needs_teacher:
            return None
        return self.average.teacher()

    def _main_pass(self, inputs: Tensor) -> Tensor:
        embedded = self._network.embed(self.module, inputs)
        logits = full_precision(self._network.classify(self.module, embedded))
        if logits.ndim != 2:
            raise LossError(
                f"The network of problem {self.name!r} returned shape {tuple(logits.shape)} for "
                f"{len(inputs)} samples; it must return logits (B, C), also for a batch of one."
            )
        require_finite(self, logits)
        return logits

    def _labelled_loss(self, logits: Tensor, labels: Tensor, size: int) -> Tensor:
        """Return the cross-entropy of samples with a label; 0 without any."""
        found = predict(logits, labels)
        total = torch.where(found.kept, -found.log_p_label, 0.0).sum()
        if self._normalise == "batch":
            return total / max(size, 1)
        return total / found.kept.sum().clamp_min(1)

    def _together(
        self,
        batch: SemiSupervisedBatch,
        step: ConsistencyStep,
        labelled: Tensor,
        found: Consistency,
    ) -> Mapping[str, Tensor]:
        values, number = found.values, len(found.values)
        require_finite(self, values)
        parts = {"labelled": labelled.detach(), "agreement": found.agreement.mean()}
        if found.accepted is not None:
            parts["accept rate"] = found.accepted.to(values.dtype).mean()
            values = torch.where(found.accepted, values, 0.0)
        if self.gated_by is not None:
            weights: Tensor = getattr(self, self.gated_by)(
                self.features(found, None if self._include_labelled else batch.indices)
            )
            check_gate(self, self.gated_by, weights, number)
            parts["unlabelled weight"] = weights.detach().mean()
            values = weights * values
        if self._normalise == "batch":
            number += len(step.inputs)
        consistency = values.sum() / number
        loss = labelled + batch.weight * consistency
        if self._entropy_weight:
            logits = step.logits if len(step.logits) else step.predict(step.augmented)
            uncertainty = entropy(logits, reduction="sum") / number
            loss = loss + self._entropy_weight * uncertainty
            parts["entropy"] = uncertainty.detach()
        parts |= {"consistency": consistency.detach(), **found.metrics}
        return {"loss": loss, **parts}

    def _look_once(self, found: Consistency) -> None:
        """Warn once when the two passes compared are equal; checked on the host only."""
        if self._looked or not self.method.needs_noise or not costs_nothing_to_read(found.values):
            return
        self._looked = True
        if not found.values.detach().any():
            warnings.warn(
                f"Problem {self.name!r} compares two passes of its network, but they came out "
                "alike, from which nothing is learned: give it augment=..., or dropout.",
                stacklevel=3,
            )
