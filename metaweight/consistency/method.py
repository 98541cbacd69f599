"""The interface of consistency methods: their inputs and their result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_number, is_positive
from metaweight.problems.state.buffers import frozen_statistics

from .._label_loss import full_precision

Transform = Callable[[Tensor], Tensor]
Apply = Callable[[nn.Module, Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """Return the inputs."""
    return x


def as_given(model: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs themselves, which are their own embedding."""
    del model
    return x


def called(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output of the model."""
    output: Tensor = model(x)
    return output


@dataclass(frozen=True)
class Network:
    """A model split into embedding and classifier, for inputs that cannot be perturbed or mixed.

    Args:
        embed: Maps inputs to real numbers; the inputs themselves when left out. For tokens, their
            embeddings.
        classify: Maps these to logits (B, C); the model itself when left out.
    """

    embed: Apply = as_given
    classify: Apply = called

    def finding(self, logits: Callable[[Any], Tensor]) -> Network:
        """Return a network whose logits are found in what ``classify`` returns."""
        return replace(self, classify=partial(_found, logits, self.classify))


@dataclass
class ConsistencyStep:
    """Inputs of a consistency method in one step.

    Args:
        model: The student.
        network: Its embedding and classifier.
        inputs: Labelled inputs, augmented, (B_l, …).
        labels: Their labels, (B_l,), -1 where there is none.
        unlabelled: Unlabelled inputs as given, (B_u, …), B_u at least 1.
        augmented: A random view of them, (B_u, …).
        logits: The student's logits for ``augmented`` in the main pass, (B_u, C), with a graph;
            empty for a method that makes the main pass itself.
        teacher: An average of the student, for methods that need one.
        augment: Makes a random view of inputs.
        strong_augment: Makes a more strongly augmented view.
    """

    model: nn.Module
    network: Network
    inputs: Tensor
    labels: Tensor
    unlabelled: Tensor
    augmented: Tensor
    logits: Tensor
    teacher: nn.Module | None = None
    augment: Transform = unchanged
    strong_augment: Transform | None = None

    def view(self) -> Tensor:
        """Return another random view of the unlabelled inputs."""
        return self.augment(self.unlabelled)

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the student's logits; running statistics are left unchanged."""
        return self.classify(self.embed(inputs))

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the student's embedding of inputs; running statistics are left unchanged."""
        if self.network.embed is as_given:
            return inputs
        with frozen_statistics(self.model):
            return self.network.embed(self.model, inputs)

    def classify(self, embedded: Tensor) -> Tensor:
        """Return the student's logits of embedded inputs; running statistics are left unchanged."""
        with frozen_statistics(self.model):
            return self.classify_and_follow(embedded)

    def classify_and_follow(self, embedded: Tensor) -> Tensor:
        """Return the student's logits of embedded inputs, and update running statistics."""
        return full_precision(self.network.classify(self.model, embedded))

    @torch.no_grad()
    def teach(self, inputs: Tensor) -> Tensor:
        """Return the teacher's logits, without a graph; running statistics are left unchanged."""
        assert self.teacher is not None
        with frozen_statistics(self.teacher):
            embedded = self.network.embed(self.teacher, inputs)
            return full_precision(self.network.classify(self.teacher, embedded))


@dataclass(frozen=True)
class Consistency:
    """Result of a consistency method for the unlabelled samples of a step.

    Args:
        values: The divergence of each, (B_u,), with a graph.
        confidence: The largest probability of its target, (B_u,), without a graph.
        agreement: ``1 - ½ Σ_c |p_c - q_c|`` between student and target, (B_u,), without a graph.
        predicted: The class of its target, (B_u,), int64.
        accepted: Which of them count, (B_u,), bool; all when left out.
        labelled: The loss of the labelled samples, where the method has its own.
        metrics: Further numbers to log.
    """

    values: Tensor
    confidence: Tensor
    agreement: Tensor
    predicted: Tensor
    accepted: Tensor | None = None
    labelled: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def compared(values: Tensor, student: Tensor, target: Tensor, **more: Any) -> Consistency:
    """Return a result with confidence and agreement.

    Args:
        values: (B_u,).
        student: Logits (B_u, C).
        target: Probabilities (B_u, C).
        **more: Further fields of :class:`Consistency`.
    """
    with torch.no_grad():
        confidence, predicted = target.max(-1)
        agreement = 1 - (student.softmax(-1) - target).abs().sum(-1) / 2
    return Consistency(values, confidence, agreement, predicted, **more)


class ConsistencyMethod(ABC):
    """A rule that asks a student to agree with a target on unlabelled samples.

    Methods are frozen dataclasses of settings and hold no state.
    """

    needs_teacher: bool = False
    """Whether the method needs a teacher, an average of the student."""

    needs_strong_augment: bool = False
    """Whether the method needs strongly augmented views."""

    needs_noise: bool = False
    """Whether the method learns nothing from two equal passes of the student."""

    makes_main_pass: bool = False
    """Whether the method itself makes the main pass, which updates running statistics, and returns
    the loss of the labelled samples; ``logits`` are then empty."""

    @abstractmethod
    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences of the unlabelled samples of a step."""


def _found(
    logits: Callable[[Any], Tensor], classify: Apply, model: nn.Module, embedded: Tensor
) -> Tensor:
    return logits(classify(model, embedded))


def checked_threshold(who: str, threshold: float | None) -> None:
    """Refuse a threshold that is not a probability.

    Raises:
        ConfigurationError: Outside (0, 1].
    """
    if threshold is not None and not (is_positive(threshold) and threshold <= 1):
        raise ConfigurationError(
            f"{who}(threshold={threshold}) is not a probability; give a number in (0, 1], or None "
            "to accept every sample."
        )


def checked_concentration(who: str, alpha: float) -> None:
    """Refuse a number that is not a concentration of a Beta distribution.

    Raises:
        ConfigurationError: Below 0 or not finite.
    """
    if not is_number(alpha, least=0):
        raise ConfigurationError(
            f"{who}(alpha={alpha}) is not a concentration of a Beta distribution; give a finite "
            "number of at least 0, where 0 mixes nothing."
        )
