"""Ready-made problems: a classifier on weighted samples, and one that learns the weights.

::

    classifier = WeightedClassifier("classifier", weights="reweight", module=net, optimizer=sgd,
                                    train_data_loader=noisy)
    reweight = WeightLearner("reweight", classifier="classifier", module=MetaWeightNet(),
                             optimizer=adam, train_data_loader=clean)
    Engine([reweight, classifier], config, {"u2l": {reweight: [classifier]},
                                            "l2u": {classifier: [reweight]}}).run()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import Config, ImplicitProblem, ReweightedProblem

from .normalise import normalise_weights

SampleLoss = Callable[..., Tensor]


class WeightedClassifier(ReweightedProblem):
    """Lower problem: ``min_w mean_i V(sg(l_i), y_i) l_i`` over batches ``(inputs, labels, …)``.

    Args:
        name: Its name.
        config: Its settings.
        weights: Name of the problem that turns ``(losses, labels)`` into weights.
        normalise: Scale the weights of each batch to mean 1. A weight network then cannot make all
            weights small, which would only reduce the learning rate.
        loss: ``loss(logits, labels, reduction="none")`` per sample.
        **problem: ``module``, ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        weights: str,
        normalise: bool = False,
        loss: SampleLoss = F.cross_entropy,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, **problem)
        self.note_references(weights=weights)
        self._weights = weights
        self._normalise = normalise
        self._loss = loss

    def sample_losses(self, batch: Any) -> Tensor:
        """Return the loss of each sample, (B,)."""
        inputs, labels = batch[0], batch[1]
        return self._loss(self.module(inputs), labels, reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return the weight of each sample, (B,)."""
        weights: Tensor = getattr(self, self._weights)(losses, batch[1])
        return normalise_weights(weights) if self._normalise else weights


class WeightLearner(ImplicitProblem):
    """Upper problem: ``min_θ mean_j loss(f_{w*(θ)}(x_j), y_j)`` over a small trusted set.

    Calling it with ``(losses, labels)`` returns the weights of its module.

    Args:
        name: Its name.
        config: Its settings.
        classifier: Name of the problem whose network is evaluated.
        loss: ``loss(logits, labels)``, a mean over the batch.
        **problem: ``module`` (a weight network), ``optimizer``, ``train_data_loader`` and the rest.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        classifier: str,
        loss: SampleLoss = F.cross_entropy,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, **problem)
        self.note_references(classifier=classifier)
        self._classifier = classifier
        self._loss = loss

    def training_step(self, batch: Any) -> Tensor:
        """Return the classifier's loss on a trusted batch."""
        inputs, labels = batch[0], batch[1]
        return self._loss(getattr(self, self._classifier)(inputs), labels)
