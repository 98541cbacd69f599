"""Functions that build an engine in which an upper problem learns part of a consistency loss.

The upper problem minimises the student's cross-entropy on trusted samples, differentiated through
the student's last step. The student should not train on the trusted samples. ::

    engine = learn_sample_weights(student, trusted, EngineConfig(train_iters=2000))
    engine.run()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from metaweight.engines import Engine, EngineConfig, Hook
from metaweight.problems import ConfigurationError
from metaweight.weighting import WeightLearner

from .gates import LearnedConsistencyWeight, LearnedThreshold, UnlabelledWeightNet
from .problems import SemiSupervisedProblem

GATE = "gate"
"""Name of the upper problem."""


def learn_weight(
    student: SemiSupervisedProblem,
    trusted: Any,
    config: EngineConfig | None = None,
    *,
    initial: float = 1.0,
    lr: float = 1e-2,
    hooks: Iterable[Hook] = (),
) -> Engine:
    """Return an engine that learns one weight for the consistency loss of a student.

    It multiplies the student's ``consistency_weight``.

    Args:
        student: The lower problem; its ``gate`` is set.
        trusted: Loader of trusted batches, of the form of the student's labelled ones.
        config: Settings of the engine.
        initial: The weight at the start.
        lr: Learning rate of the upper problem, whose optimizer is Adam.
        hooks: Hooks of the engine, such as the student's teacher.

    Raises:
        ConfigurationError: When the student has a gate already.
    """
    return learn_gate(student, trusted, LearnedConsistencyWeight(initial), config, lr, hooks)


def learn_threshold(
    student: SemiSupervisedProblem,
    trusted: Any,
    config: EngineConfig | None = None,
    *,
    initial: float = 0.8,
    temperature: float = 0.05,
    classes: int | None = None,
    lr: float = 1e-2,
    hooks: Iterable[Hook] = (),
) -> Engine:
    """Return an engine that learns a confidence threshold for all classes, or one for each.

    The threshold of the student's own method is switched off.

    Args:
        student: The lower problem; see :func:`learn_weight`.
        trusted: Loader of trusted batches.
        config: Settings of the engine.
        initial: The threshold at the start.
        temperature: How soft it is; see :class:`~metaweight.consistency.LearnedThreshold`.
        classes: Number of classes, for a threshold each.
        lr: Learning rate of the upper problem.
        hooks: Hooks of the engine.
    """
    gate = LearnedThreshold(initial, temperature, classes)
    if hasattr(student.method, "threshold"):
        student.method = replace(student.method, threshold=None)  # type: ignore[type-var]
    return learn_gate(student, trusted, gate, config, lr, hooks)


def learn_sample_weights(
    student: SemiSupervisedProblem,
    trusted: Any,
    config: EngineConfig | None = None,
    *,
    hidden_size: int = 32,
    initial: float = 0.5,
    lr: float = 1e-2,
    hooks: Iterable[Hook] = (),
) -> Engine:
    """Return an engine that learns a weight network for unlabelled samples.

    The weight is a function of the sample's divergence, the confidence of its target, and the
    agreement of student and target.

    Args:
        student: The lower problem; see :func:`learn_weight`.
        trusted: Loader of trusted batches.
        config: Settings of the engine.
        hidden_size: Width of the weight network.
        initial: Weight of every sample at the start.
        lr: Learning rate of the upper problem.
        hooks: Hooks of the engine.
    """
    gate = UnlabelledWeightNet(hidden_size, initial=initial)
    return learn_gate(student, trusted, gate, config, lr, hooks)


def learn_gate(
    student: SemiSupervisedProblem,
    trusted: Any,
    gate: nn.Module,
    config: EngineConfig | None = None,
    lr: float = 1e-2,
    hooks: Iterable[Hook] = (),
) -> Engine:
    """Return an engine that learns any module from features to weights; see :func:`learn_weight`.

    Args:
        student: The lower problem; its ``gate`` is set.
        trusted: Loader of trusted batches.
        gate: From :class:`~metaweight.consistency.UnlabelledFeatures` to weights (B_u,).
        config: Settings of the engine.
        lr: Learning rate of the upper problem.
        hooks: Hooks of the engine.
    """
    if student.gated_by is not None:
        raise ConfigurationError(
            f"Problem {student.name!r} has a gate already, problem {student.gated_by!r}; leave its "
            "gate out, or build the engine yourself."
        )
    student.gated_by = GATE
    upper = WeightLearner(
        GATE,
        classifier=student.name,
        module=gate,
        optimizer=torch.optim.Adam(gate.parameters(), lr=lr),
        train_data_loader=trusted,
        inputs=student.reader.inputs,
        labels=student.reader.labels,
        logits=student.reader.logits,
    )
    return Engine.bilevel(upper, student, config=config, hooks=hooks)
