"""Data, network, views and protocol of each dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaweight.consistency import Affine, Chain, CropFlip, Cutout, GaussianNoise
from metaweight.data import (
    PROTOCOLS,
    LabelledTensors,
    load_cifar,
    load_digits,
    load_svhn,
    out_of_distribution_pool,
    semi_supervised_split,
)
from metaweight.models import DigitsNet, WideResNet28x2

View = Callable[[Tensor], Tensor]
DATASETS = ("digits", "svhn", "cifar10")


@dataclass(frozen=True)
class Protocol:
    """Settings that hold for every method.

    Attributes:
        steps: Steps of a run.
        labelled_batch: Labelled samples of a batch, at most as many as there are.
        unlabelled_batch: Unlabelled samples of a batch.
        lr: Learning rate of Adam.
        decay: Decay of the average that is evaluated beside the student.
        warm_up: Share of the run in which the consistency weight rises.
        validation: Samples to choose weights by.
        epsilon: Length of VAT's perturbation.
        evaluations: Evaluations of a run, evenly spread; the last is at its end.
    """

    steps: int
    labelled_batch: int
    unlabelled_batch: int
    lr: float
    decay: float
    validation: int
    epsilon: float
    warm_up: float = 0.4
    evaluations: int = 10


@dataclass(frozen=True)
class Task:
    """One dataset with a number of labels and a seed.

    Attributes:
        labelled: Labelled samples.
        unlabelled: The pool; its labels must not be read.
        validation: Samples to choose weights by.
        test: Samples to report.
        network: Makes a network with initial weights of its own for each seed.
        weak: Random view of inputs.
        strong: A more strongly augmented view.
        foreign: Which samples of the pool belong to classes without labels, bool.
    """

    labelled: LabelledTensors
    unlabelled: LabelledTensors
    validation: LabelledTensors
    test: LabelledTensors
    network: Callable[[], nn.Module]
    weak: View
    strong: View
    foreign: Tensor


DIGITS = Protocol(
    steps=500,
    labelled_batch=50,
    unlabelled_batch=64,
    lr=2e-3,
    decay=0.98,
    validation=200,
    epsilon=1.0,
)
SVHN = Protocol(
    steps=500_000,
    labelled_batch=50,
    unlabelled_batch=50,
    lr=3e-3,
    decay=0.999,
    validation=PROTOCOLS["svhn-1000"].validation,
    epsilon=1.0,
    evaluations=20,
)
CIFAR10 = Protocol(
    steps=500_000,
    labelled_batch=50,
    unlabelled_batch=50,
    lr=3e-3,
    decay=0.999,
    validation=PROTOCOLS["cifar10-4000"].validation,
    epsilon=6.0,
    evaluations=20,
)
PROTOCOL_OF = {"digits": DIGITS, "svhn": SVHN, "cifar10": CIFAR10}
KNOWN = {"digits": (1, 3, 5, 8, 9), "svhn": (1, 3, 5, 8, 9), "cifar10": (2, 3, 4, 5, 6, 7)}
"""Classes with labels where a part of the pool is foreign: digits that look alike, animals."""
LABELS_OF = {"digits": 20, "svhn": 1000, "cifar10": 4000}


def load(
    dataset: str, root: Path, *, download: bool = False
) -> tuple[LabelledTensors, LabelledTensors]:
    """Return training and test data, images in [-1, 1], of digits in [0, 1].

    Raises:
        DatasetUnavailableError: When SVHN or CIFAR can neither be read nor downloaded.
    """
    if dataset == "digits":
        return load_digits(test_size=500, seed=0)
    if dataset == "svhn":
        loaded = load_svhn(root, download)
    else:
        loaded = load_cifar("cifar10", root, download)
    return _scaled(loaded[0]), _scaled(loaded[1])


def task(
    dataset: str,
    data: tuple[LabelledTensors, LabelledTensors],
    labels: int,
    seed: int,
    protocol: Protocol,
    foreign_share: float | None = None,
) -> Task:
    """Return the task of a seed, which draws split and initial weights.

    Args:
        dataset: One of :data:`DATASETS`.
        data: Training and test data.
        labels: Labelled samples, the same number of each class.
        seed: Seed of the split and the network.
        protocol: Settings of the dataset.
        foreign_share: Share of the pool from classes outside :data:`KNOWN`, of which there are no
            labels then and which are not tested; no such restriction when left out.
    """
    generator = torch.Generator().manual_seed(seed)
    train, test = data
    classes = train.num_classes
    if foreign_share is None:
        split: Any = semi_supervised_split(
            train, labels, validation=protocol.validation, generator=generator
        )
        foreign = torch.zeros(len(split.unlabelled), dtype=torch.bool)
    else:
        known = KNOWN[dataset]
        # Plus the number that would belong to the other classes.
        everywhere = labels // len(known) * classes
        whole = semi_supervised_split(
            train, everywhere, validation=protocol.validation, generator=generator
        )
        split, foreign = out_of_distribution_pool(whole, known, foreign_share, generator=generator)
        test = _restricted(test, known)
        classes = len(known)
    weak, strong = VIEWS[dataset]
    return Task(
        split.labelled,
        split.unlabelled,
        split.validation,
        test,
        lambda: _network(dataset, classes, seed),
        weak,
        strong,
        foreign,
    )


VIEWS: dict[str, tuple[View, View]] = {
    "digits": (
        Chain(Affine(0.1), GaussianNoise(0.1)),
        Chain(Affine(0.2), Cutout(2), GaussianNoise(0.1)),
    ),
    "svhn": (CropFlip(2), Chain(CropFlip(4), Cutout(16), GaussianNoise(0.1))),
    "cifar10": (
        Chain(CropFlip(2, flip=True), GaussianNoise(0.15)),
        Chain(CropFlip(4, flip=True), Cutout(16), GaussianNoise(0.15)),
    ),
}


def _network(dataset: str, classes: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    if dataset == "digits":
        return DigitsNet(classes, generator=generator)
    return WideResNet28x2(classes, generator=generator)


def _scaled(data: LabelledTensors) -> LabelledTensors:
    inputs = data.inputs.float().div(127.5).sub(1)
    return LabelledTensors(inputs, data.labels, data.clean_labels, data.indices, data.num_classes)


def _restricted(data: LabelledTensors, classes: Sequence[int]) -> LabelledTensors:
    number = torch.tensor(list(classes))
    kept = data.subset(torch.isin(data.labels, number))
    labels = (kept.labels.unsqueeze(1) == number).long().argmax(1)
    return LabelledTensors(kept.inputs, labels, labels.clone(), kept.indices, len(classes))
