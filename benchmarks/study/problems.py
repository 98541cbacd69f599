"""The graph of each method: a classifier with given weights, or one whose weights are learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, ImplicitProblem, Problem
from metaweight.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    LabelledTensors,
    Normalise,
    Pipeline,
    RandomCropFlip,
    TensorLoader,
)
from metaweight.models import DigitsNet, ResNet32
from metaweight.weighting import (
    ClassAwareWeightNet,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    class_balanced_weights,
    class_size_groups,
    focal_loss,
    normalise_weights,
)

from .methods import Method
from .protocols import Protocol
from .splits import Splits, stream

BatchLoss = Callable[[Tensor, Tensor], Tensor]


class BaselineClassifier(ImplicitProblem):
    """A single level, ``min_w loss(f_w(x), y)``, with weights that nobody learns.

    Args:
        name: Its name.
        config: Its settings.
        loss: ``loss(logits, labels)``, one number for the batch.
        **problem: ``module``, ``optimizer`` and the rest of :class:`~metaweight.Problem`.
    """

    def __init__(self, name: str, config: Config, *, loss: BatchLoss, **problem: Any) -> None:
        super().__init__(name, config, **problem)
        self._loss = loss

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of the batch."""
        return self._loss(self.module(batch[0]), batch[1])


@dataclass(frozen=True)
class Program:
    """The problems of a method and how they depend on each other."""

    problems: list[Problem]
    dependencies: dict[str, dict[Problem, list[Problem]]]
    groups: Tensor | None
    """For learned weights the group of each class, (C,); ``None`` for given ones."""


@dataclass(frozen=True)
class Run:
    """One method on the data of one seed.

    Args:
        method: Which method.
        seed: Where every random number of the run comes from.
        protocol: How to train.
        steps: Steps of the classifier.
        device: Where.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    """

    method: Method
    seed: int
    protocol: Protocol
    steps: int
    device: str
    precision: str


def build(run: Run, splits: Splits) -> Program:
    """Return the problems of ``run``: the classifier, and above it the learner of its weights."""
    protocol, weighting = run.protocol, run.method.weighting
    data = splits.train.concat(splits.meta) if run.method.with_meta else splits.train
    # Methods of the same seed start from the same network and draw the same batches.
    network = _network(splits, stream(run.seed, "network"))
    sgd = _sgd(network, _learning_rate(run), protocol)
    shared: dict[str, Any] = {
        "config": Config(precision=run.precision),
        "module": network,
        "optimizer": sgd,
        "scheduler": _milestones(sgd, run),
        "train_data_loader": _loader(data, run, "train"),
    }
    if not run.method.learned:
        loss = batch_loss(weighting, data, protocol, run.device)
        return Program([BaselineClassifier("classifier", loss=loss, **shared)], {}, None)
    classifier = WeightedClassifier(
        "classifier",
        weights="reweight",
        normalise=protocol.normalise or weighting != "meta-weight-net",
        **shared,
    )
    groups = class_groups(weighting, data, protocol)
    learner = _weight_learner(run, splits, groups)
    dependencies = {"u2l": {learner: [classifier]}, "l2u": {classifier: [learner]}}
    return Program([learner, classifier], dependencies, groups)


def batch_loss(weighting: str, data: LabelledTensors, protocol: Protocol, device: str) -> BatchLoss:
    """Return the loss of a batch under weights that depend on labels and outputs only.

    Class sizes are those of the labels as given in ``data``, wrong ones included: a learner does
    not know which are wrong.
    """
    if weighting == "ce":
        return F.cross_entropy
    if weighting == "focal":
        return partial(focal_loss, gamma=protocol.focal_gamma)
    of_class = class_balanced_weights(data.class_counts()).to(device)

    def class_balanced(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (normalise_weights(of_class[labels]) * losses).mean()

    return class_balanced


def class_groups(weighting: str, data: LabelledTensors, protocol: Protocol) -> Tensor:
    """Return the group of each class, (C,): all one group for a network that sees the loss only."""
    if weighting != "class-aware":
        return torch.zeros(data.num_classes, dtype=torch.int64)
    if protocol.class_groups is None:
        return torch.arange(data.num_classes)
    return class_size_groups(data.class_counts(), protocol.class_groups)


def evaluation_transform(splits: Splits) -> Normalise | None:
    """Return what is applied to images before the network at test time; nothing to digits."""
    return Normalise(CIFAR_MEAN, CIFAR_STD) if _is_cifar(splits) else None


def _weight_learner(run: Run, splits: Splits, groups: Tensor) -> WeightLearner:
    protocol = run.protocol
    # Layers without a generator argument draw from the global stream.
    torch.manual_seed(stream(run.seed, "weight network").initial_seed())
    aware = run.method.weighting == "class-aware"
    network = ClassAwareWeightNet(groups) if aware else MetaWeightNet()
    optimizer: torch.optim.Optimizer
    if protocol.meta_optimizer == "adam":
        optimizer = torch.optim.Adam(
            network.parameters(),
            lr=protocol.meta_learning_rate,
            weight_decay=protocol.meta_weight_decay,
        )
    else:
        optimizer = _sgd(network, protocol.meta_learning_rate, protocol)
    return WeightLearner(
        "reweight",
        Config(precision=run.precision),
        classifier="classifier",
        module=network,
        optimizer=optimizer,
        scheduler=_milestones(optimizer, run) if protocol.meta_schedule else None,
        train_data_loader=_loader(splits.meta, run, "meta"),
    )


def _network(splits: Splits, generator: torch.Generator) -> nn.Module:
    model = ResNet32 if _is_cifar(splits) else DigitsNet
    return model(splits.train.num_classes, generator=generator)


def _is_cifar(splits: Splits) -> bool:
    return splits.train.inputs.dtype == torch.uint8


def _learning_rate(run: Run) -> float:
    given, learned = run.protocol.learning_rate, run.protocol.learned_learning_rate
    return learned if run.method.learned and learned is not None else given


def _sgd(network: nn.Module, learning_rate: float, protocol: Protocol) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        nesterov=True,
    )


def _milestones(optimizer: torch.optim.Optimizer, run: Run) -> torch.optim.lr_scheduler.MultiStepLR:
    steps = [round(share * run.steps) for share in run.protocol.milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)


def _loader(data: LabelledTensors, run: Run, part: str) -> TensorLoader:
    transform = None
    if data.inputs.dtype == torch.uint8:
        crops = RandomCropFlip(generator=stream(run.seed, f"{part} crops", run.device))
        transform = Pipeline(crops, Normalise(CIFAR_MEAN, CIFAR_STD))
    return TensorLoader(
        data,
        run.protocol.batch_size,
        transform=transform,
        generator=stream(run.seed, f"{part} order"),
        with_replacement=run.protocol.with_replacement,
        device=run.device,
    )
