"""Online confident learning whose mixture is learned by an upper problem on clean labels.

The lower problem trains on ``α hard + (1 - α) soft``, whose derivative by α is ``hard - soft``; the
upper one owns ``α = sigmoid(s)`` and, on request, soft targets whose columns are softmaxes::

    net = WithCriterion(DigitsNet(), OnlineConfidentLearning(10))
    confidence = LearnedConfidence(10)
    lower = ConfidentClassifier("classifier", confidence="confidence", module=net, optimizer=sgd,
                                train_data_loader=noisy)
    upper = ConfidenceLearner("confidence", classifier="classifier", module=confidence,
                              optimizer=adam, train_data_loader=clean)
    Engine.bilevel(upper, lower, config=config, hooks=[OnlineConfidentLearningHook()]).run()
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.problems import Config, ConfigurationError, ImplicitProblem
from metaweight.problems.base.settings import is_between, is_count
from metaweight.problems.problem import ModuleType

from .._batch import Part
from .._batch_reader import BatchReader
from .._sample_loss import SampleLoss
from .online_confident_learning import OnlineConfidentLearning, smoothed_targets

_CLEAN = SampleLoss("ConfidenceLearner", F.cross_entropy)


class Confidence(NamedTuple):
    """Output of the upper problem: the mixture of the lower problem's loss."""

    alpha: Tensor
    """Weight of the labels given, in (0, 1), 0-dim."""

    soft_targets: Tensor | None
    """(C, C), columns that sum to 1; ``None`` for the criterion's own."""


class LearnedConfidence(nn.Module):
    """``α = sigmoid(s)`` and, on request, soft targets with a softmax in each column.

    Args:
        num_classes: C, at least 2.
        alpha: First value of α, in (0, 1).
        learn_targets: Learn the soft targets too, instead of those the criterion collects.
        smoothing: The first soft targets are one-hot vectors smoothed by this much, in (0, 1).

    Raises:
        ConfigurationError: For a setting out of range.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.5,
        *,
        learn_targets: bool = False,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        if not is_count(num_classes, least=2) or not (
            is_between(alpha, 0, 1) and is_between(smoothing, 0, 1)
        ):
            raise ConfigurationError(
                f"LearnedConfidence(num_classes={num_classes}, alpha={alpha}, "
                f"smoothing={smoothing}) was asked for; use at least 2 classes and numbers "
                "strictly between 0 and 1, where a sigmoid and a softmax can start."
            )
        self.logit = nn.Parameter(torch.tensor(math.log(alpha / (1 - alpha))))
        self.target_logits: nn.Parameter | None = None
        if learn_targets:
            first = smoothed_targets(num_classes, smoothing, torch.get_default_dtype())
            self.target_logits = nn.Parameter(first.log())

    def forward(self) -> Confidence:
        """Return the current mixture, with its graph."""
        targets = None if self.target_logits is None else self.target_logits.softmax(0)
        return Confidence(self.logit.sigmoid(), targets)


class ConfidentClassifier(ImplicitProblem[ModuleType]):
    """Lower problem: trains on noisy ``(inputs, labels, …)`` with the mixture it is given.

    Args:
        name: Its name.
        config: Its settings.
        confidence: Name of the problem whose call returns a :class:`Confidence`; when left out,
            the criterion's own α and targets are used.
        module: A network with an :class:`OnlineConfidentLearning` as its ``criterion``, such as
            :class:`WithCriterion`.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: When the module has no such criterion.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        confidence: str | None = None,
        module: ModuleType,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, module, **problem)
        if not isinstance(getattr(module, "criterion", None), OnlineConfidentLearning):
            raise ConfigurationError(
                f"ConfidentClassifier {name!r} received a module without an "
                "OnlineConfidentLearning as its criterion; give it "
                "module=WithCriterion(network, OnlineConfidentLearning(num_classes))."
            )
        if confidence is not None:
            self.note_references(confidence=confidence)
        self._confidence = confidence
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the mixed loss of a noisy batch."""
        parts = self._reader.read(batch)
        logits, labels = self._reader.predict(self.module, parts.inputs), parts.labels
        criterion: Any = self.module.criterion
        if self._confidence is None:
            loss: Tensor = criterion(logits, labels)
        else:
            alpha, targets = getattr(self, self._confidence)()
            loss = criterion(logits, labels, alpha=alpha, soft_targets=targets)
        return loss


class ConfidenceLearner(ImplicitProblem[ModuleType]):
    """Upper problem: the classifier's cross-entropy on clean ``(inputs, labels, …)``.

    Args:
        name: Its name.
        config: Its settings.
        classifier: Name of the problem whose network is evaluated.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        module: A :class:`LearnedConfidence`.
        **problem: ``optimizer``, ``train_data_loader`` and the rest.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        classifier: str,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        module: ModuleType | None = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, module, **problem)
        self.note_references(classifier=classifier)
        self._classifier = classifier
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the classifier's loss on a clean batch."""
        parts = self._reader.read(batch)
        logits = self._reader.predict(getattr(self, self._classifier), parts.inputs)
        return _CLEAN.mean(logits, parts.labels)
