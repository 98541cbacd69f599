"""Ready-made problems: a classifier on weighted samples, and one that learns the weights.

::

    classifier = WeightedClassifier("classifier", weights="reweight", module=net, optimizer=sgd,
                                    train_data_loader=noisy)
    reweight = WeightLearner("reweight", classifier="classifier", module=MetaWeightNet(),
                             optimizer=adam, train_data_loader=clean)
    Engine.bilevel(reweight, classifier, config=config).run()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight._batch import Batch, Part
from metaweight._batch_reader import BatchReader
from metaweight._labels import Labels, read_labels, read_values
from metaweight._sample_loss import SampleLoss
from metaweight.problems import Config, ImplicitProblem, LossError, ReweightedProblem
from metaweight.problems.problem import ModuleType

from .normalise import normalise_weights

Loss = Callable[..., Tensor]


class WeightedClassifier(ReweightedProblem[ModuleType]):
    """Lower problem: ``min_w mean_i V(sg(l_i), y_i) l_i`` over batches ``(inputs, labels, …)``.

    Batches are tuples, lists or mappings (a dictionary, a Hugging Face ``BatchEncoding``).
    Integer labels of logits (B, C) are classes; samples of label -1 or -100 are left out of the
    mean.

    Args:
        name: Its name.
        config: Its settings.
        weights: Name of the problem that turns ``(losses, labels)`` into weights.
        normalise: Scale the weights of each batch to mean 1. A weight network then cannot make all
            weights small, which would only reduce the learning rate.
        loss: A function or module of ``(logits, labels)``: with ``reduction="none"``, as an
            argument or attribute, or by itself one number per sample.
        inputs: Key or place of the inputs in a batch, or a function of the batch. When left out,
            the first part of a sequence. Of a mapping, all but labels and positions: those that the
            network has arguments for, by name, else the one with a usual name, such as ``"image"``.
        labels: The same of the labels. When left out, the second part of a sequence, or the one
            named ``"labels"``, ``"label"``, ``"y"``, ``"targets"``, ``"target"`` or
            ``"label_ids"``.
        logits: Key, attribute or place of the logits in what the network returns, or a function of
            it. When left out, its ``logits`` where it has any, else all of it.
        module: Its network.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        weights: str,
        normalise: bool = False,
        loss: Loss = F.cross_entropy,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, module, **problem)
        self.note_references(weights=weights)
        self._weights = weights
        self._normalise = normalise
        self._loss = SampleLoss(f"WeightedClassifier {name!r}", loss)
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)
        # Whether labels are classes is known from the outputs that they belong to.
        self._of_classes = True

    def sample_losses(self, batch: Any) -> Tensor:
        """Return the loss of each sample, (B,); 0 for one without a label."""
        parts = self.parts_of(batch)
        outputs = self._reader.outputs(self.module, parts.inputs, tensor=self._loss.of_logits)
        targets = self._loss.read(parts.labels, outputs)
        self._of_classes = isinstance(targets, Labels)
        if self._of_classes and outputs.ndim == 2:
            self.note_logits(outputs)
        return self._loss.each(outputs, targets)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return the weight of each sample, (B,), scaled for a mean over those with a label."""
        return self.weights_from(losses, self.parts_of(batch).labels, losses.device)

    def parts_of(self, batch: Any) -> Batch:
        """Return inputs, labels and positions of a batch."""
        return self._reader.read(batch)

    def weights_from(self, features: Tensor, given: Any, device: torch.device) -> Tensor:
        """Return the weights of samples with these features, one row per sample, and labels."""
        weights, kept = self.weights_and_kept(features, given, device)
        weights = weights if kept is None else over_labelled(weights, kept)
        return normalise_weights(weights) if self._normalise else weights

    def weights_and_kept(
        self, features: Tensor, given: Any, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weights as they are before they are scaled, and which samples have a label;
        ``None`` where all are known to."""
        labels = given if isinstance(given, Mapping) else read_values(given, "Labels", LossError)
        if isinstance(labels, Tensor):
            labels = labels.to(device, non_blocking=True)
        if not self._of_classes or not isinstance(labels, Tensor) or labels.is_floating_point():
            return getattr(self, self._weights)(features, labels), None
        ignored = self._loss.ignore_index
        read = read_labels(labels, shape=features.shape[:1], ignore_index=ignored)
        weights = getattr(self, self._weights)(features, read.classes)
        fits = isinstance(weights, Tensor) and weights.numel() == len(features)
        return weights, read.kept if fits and not read.whole else None


def over_labelled(weights: Tensor, kept: Tensor) -> Tensor:
    """Return 0 for samples without a label, and ``w B / B_labelled`` for the others.

    The mean over the batch is then the mean over those that have one.
    """
    number = kept.sum().clamp_min(1).to(weights.dtype)
    return torch.where(kept.reshape(weights.shape), weights, 0) * (kept.numel() / number)


class WeightLearner(ImplicitProblem[ModuleType]):
    """Upper problem: ``min_θ mean_j loss(f_{w*(θ)}(x_j), y_j)`` over a small trusted set.

    Calling it with ``(losses, labels)`` returns the weights of its module.

    Args:
        name: Its name.
        config: Its settings.
        classifier: Name of the problem whose network is evaluated.
        loss: ``loss(logits, labels)``, a mean over the batch or one number per sample.
        inputs: As for :class:`WeightedClassifier`.
        labels: As there.
        logits: As there; when left out, where the classifier was told that they are.
        module: Its weight network.
        **problem: ``optimizer``, ``train_data_loader`` and the rest.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        classifier: str,
        loss: Loss = F.cross_entropy,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, module, **problem)
        self.note_references(classifier=classifier)
        self._classifier = classifier
        self._loss = SampleLoss(f"WeightLearner {name!r}", loss)
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the classifier's loss on a trusted batch, over the samples with a label."""
        parts = self._reader.read(batch)
        classifier = getattr(self, self._classifier)
        reader = self._reader
        told = getattr(classifier, "_reader", None)
        if reader.logits is None and isinstance(told, BatchReader):
            reader = replace(reader, logits=told.logits)
        outputs = reader.outputs(classifier, parts.inputs, tensor=self._loss.of_logits)
        return self._loss.mean(outputs, parts.labels)
