"""The graph of each method: a classifier with fixed weights, or one whose weights are learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, Hook, ImplicitProblem, Problem
from metaweight.data import (
    CIFAR_MEAN,
    CIFAR_STD,
    LabelledTensors,
    Normalise,
    Pipeline,
    RandomCropFlip,
    TensorLoader,
)
from metaweight.models import DigitsNet, ResNet18, ResNet32
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

from .economies import ECONOMIES
from .methods import Method
from .protocols import Protocol
from .remedies import REMEDIES, Loss, Remedy, of_logits, remedy
from .splits import Splits, stream

BatchLoss = Callable[[Tensor, Tensor], Tensor]


class BaselineClassifier(ImplicitProblem):
    """A single level, ``min_w loss(f_w(x), y)``, without learned weights.

    Args:
        name: Its name.
        config: Its settings.
        loss: ``loss(problem, batch)``, one number for the batch.
        **problem: ``module``, ``optimizer`` and the rest of :class:`~metaweight.Problem`.
    """

    def __init__(self, name: str, config: Config, *, loss: Loss, **problem: Any) -> None:
        super().__init__(name, config, **problem)
        self._loss = loss

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of the batch."""
        return self._loss(self, batch)


@dataclass(frozen=True)
class Program:
    """The problems of a method and how they depend on each other."""

    problems: list[Problem]
    dependencies: dict[str, dict[Problem, list[Problem]]]
    groups: Tensor | None
    """For learned weights the group of each class, (C,); ``None`` for fixed ones."""
    hooks: Sequence[Hook] = ()
    rejected: Tensor | None = None
    """Which samples of ``data`` were found to be wrong, (N,); ``None`` without such a search."""
    data: LabelledTensors | None = None
    """The data searched for wrong labels."""


@dataclass(frozen=True)
class Run:
    """One method on the data of one seed.

    Args:
        method: Which method.
        seed: Seed of all random numbers of the run.
        protocol: How to train.
        steps: Steps of the classifier.
        device: The device.
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
    if not run.method.learned:
        return _single_level(run, splits, data)
    economy = ECONOMIES[run.method.economy]
    shared = _trained("classifier", run, splits, data, stream(run.seed, "network"))
    shared["config"] = replace(shared["config"], **economy.config)
    classifier = WeightedClassifier(
        weights="reweight",
        normalise=protocol.normalise or weighting != "meta-weight-net",
        **shared,
    )
    groups = class_groups(weighting, data, protocol)
    learner = _weight_learner(run, splits, groups)
    dependencies = {"u2l": {learner: [classifier]}, "l2u": {classifier: [learner]}}
    return Program([learner, classifier], dependencies, groups, economy.hooks(learner.name))


def _single_level(run: Run, splits: Splits, data: LabelledTensors) -> Program:
    weighting = run.method.weighting
    if weighting in REMEDIES:

        def make_judge(name: str, part: LabelledTensors, number: int) -> Problem:
            network = stream(run.seed, f"judge {number}")
            given = _trained(name, run, splits, part, network, wrap=_of_pixels(splits))
            return BaselineClassifier(loss=of_logits(F.cross_entropy), **given)

        # Networks draw from the global stream where they are made or mixed.
        torch.manual_seed(stream(run.seed, "remedy").initial_seed())
        chosen = remedy(weighting, data, make_judge, run.steps, run.device)
    else:
        chosen = Remedy(data, of_logits(batch_loss(weighting, data, run.protocol, run.device)))
    given = _trained(
        "classifier", run, splits, chosen.data, stream(run.seed, "network"), wrap=chosen.wrap
    )
    classifier = BaselineClassifier(loss=chosen.loss, **given)
    return Program([classifier], {}, None, chosen.hooks, chosen.rejected, data)


def _trained(
    name: str,
    run: Run,
    splits: Splits,
    data: LabelledTensors,
    generator: torch.Generator,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> dict[str, Any]:
    """Return the arguments common to all classifiers.

    Methods of the same seed start from the same network and draw the same batches.
    """
    network = wrap(_network(run, splits, generator))
    sgd = _sgd(network, _learning_rate(run), run.protocol)
    return {
        "name": name,
        "config": Config(precision=run.precision),
        "module": network,
        "optimizer": sgd,
        "scheduler": _milestones(sgd, run),
        "train_data_loader": _loader(data, run, "train"),
    }


class _OfPixels(nn.Module):
    """A network for normalised images that also takes bytes, for the search for wrong labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._normalise = Normalise(CIFAR_MEAN, CIFAR_STD)

    def forward(self, images: Tensor) -> Tensor:
        given = self._normalise(images) if images.dtype == torch.uint8 else images
        logits: Tensor = self.network(given)
        return logits


def _of_pixels(splits: Splits) -> Callable[[nn.Module], nn.Module]:
    return _OfPixels if _is_cifar(splits) else lambda network: network


def batch_loss(weighting: str, data: LabelledTensors, protocol: Protocol, device: str) -> BatchLoss:
    """Return the loss of a batch under weights that depend on labels and outputs only.

    Class sizes are those of the labels in ``data``, wrong ones included: a method does not know
    which are wrong.
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
    """Return the transform of images before the network at test time; ``None`` for digits."""
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


NETWORKS = {"resnet32": ResNet32, "resnet18": ResNet18, "digits-net": DigitsNet}


def _network(run: Run, splits: Splits, generator: torch.Generator) -> nn.Module:
    usual = "resnet32" if _is_cifar(splits) else "digits-net"
    model = NETWORKS[run.protocol.network or usual]
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
        with_indices=True,
        device=run.device,
    )
