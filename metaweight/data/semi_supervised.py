"""Splits into a few labelled samples and an unlabelled pool, of the same classes or partly not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from metaweight._generator import checked_generator
from metaweight._host import as_tensor
from metaweight.problems.base.settings import is_count, is_number

from ._selection import random_per_class
from .labelled import LabelledTensors


class SplitSizes(NamedTuple):
    """Sizes for :func:`semi_supervised_split`; what remains of the data is the unlabelled pool."""

    labelled: int
    """Labelled samples in all, the same number of each class."""
    validation: int
    """Samples held out to choose hyperparameters."""


PROTOCOLS: Mapping[str, SplitSizes] = MappingProxyType(
    {
        "svhn-1000": SplitSizes(1_000, 7_326),
        "cifar10-4000": SplitSizes(4_000, 5_000),
        "cifar10-250": SplitSizes(250, 5_000),
        "cifar10-40": SplitSizes(40, 5_000),
    }
)
"""Splits of the official training data that published results use, by data and label count.

SVHN with 1 000 and CIFAR-10 with 4 000 and 250 labels are those of Oliver et al., "Realistic
Evaluation of Deep Semi-Supervised Learning Algorithms" (NeurIPS 2018), with the validation sizes of
their code; CIFAR-10 with 40 labels is from Sohn et al., "FixMatch" (NeurIPS 2020), here with the
same validation part. SVHN's 73 257 training images leave 64 931 unlabelled.
"""


class SemiSupervisedSplit(NamedTuple):
    """Three disjoint parts of training data."""

    labelled: LabelledTensors
    """Samples whose ``labels`` training may read."""
    unlabelled: LabelledTensors
    """Samples of which training may read ``inputs`` only; the labels are kept for analysis."""
    validation: LabelledTensors
    """Samples to choose hyperparameters with, possibly none."""


def semi_supervised_split(
    data: LabelledTensors,
    labelled: int,
    *,
    validation: int = 0,
    balanced: bool = True,
    generator: torch.Generator,
) -> SemiSupervisedSplit:
    """Split ``data`` at random into labelled samples, a validation part and an unlabelled pool.

    The protocol of Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning
    Algorithms" (NeurIPS 2018): the validation part is drawn first, uniformly from all of ``data``,
    then the labelled samples from the rest; the pool is everything else. With the same
    generator state, the validation part is the same for any ``labelled``, and a smaller labelled
    part is a subset of a larger one.

    Every part keeps the labels of its samples, noisy or not. Those of the pool are for analysis:
    training must not read them.

    Args:
        data: Data to split.
        labelled: Labelled samples in all, at least 1.
        validation: Validation samples in all, not balanced.
        balanced: Whether to take the same number of each of the C classes, by ``clean_labels``;
            ``labelled`` is then a multiple of C. Otherwise the labelled samples
            are drawn uniformly.
        generator: Source of the draws, on any device.

    Returns:
        The parts, disjoint, together all of ``data``, each in the order of ``data``.

    Raises:
        ValueError: When a size is out of range, ``labelled`` cannot be balanced, or a class has too
            few samples.
    """
    _check_sizes(data, labelled, validation, balanced)
    checked_generator("semi_supervised_split", generator)
    order = torch.randperm(len(data), generator=generator, device=generator.device).to(data.device)
    held_out, candidates = order[:validation], order[validation:]
    if balanced:
        chosen = _balanced(data, candidates, labelled // data.num_classes, generator)
    else:
        chosen = candidates[:labelled]
    part = torch.zeros(len(data), dtype=torch.int64, device=data.device)
    part[chosen], part[held_out] = 1, 2
    return SemiSupervisedSplit(
        labelled=data.subset(part == 1),
        unlabelled=data.subset(part == 0),
        validation=data.subset(part == 2),
    )


def _check_sizes(data: LabelledTensors, labelled: int, validation: int, balanced: bool) -> None:
    if not is_count(labelled, least=1):
        raise ValueError(
            f"semi_supervised_split was asked for {labelled} labelled samples; use at least 1."
        )
    if not is_count(validation, least=0):
        raise ValueError(
            f"semi_supervised_split was asked for {validation} validation samples; use 0 or more."
        )
    if labelled + validation > len(data):
        raise ValueError(
            f"semi_supervised_split was asked for {labelled} labelled and {validation} validation "
            f"samples of {len(data)}; use at most {len(data)} together."
        )
    if balanced and labelled % data.num_classes:
        raise ValueError(
            f"semi_supervised_split was asked for {labelled} labelled samples, the same number of "
            f"each of {data.num_classes} classes; use a multiple of {data.num_classes}, or "
            "balanced=False."
        )


def _balanced(
    data: LabelledTensors, candidates: Tensor, per_class: int, generator: torch.Generator
) -> Tensor:
    classes = data.clean_labels[candidates]
    available = torch.bincount(classes, minlength=data.num_classes)
    fewest = int(available.min())
    if fewest < per_class:
        raise ValueError(
            f"semi_supervised_split was asked for {per_class} labelled samples of each of "
            f"{data.num_classes} classes, but class {int(available.argmin())} has only {fewest} "
            f"beside the {len(data) - len(candidates)} validation samples; use fewer labelled or "
            "validation samples, or balanced=False."
        )
    counts = torch.full_like(available, per_class)
    return candidates[random_per_class(classes, counts, generator)]


def out_of_distribution_pool(
    split: SemiSupervisedSplit,
    classes: Sequence[int],
    share: float,
    *,
    size: int | None = None,
    generator: torch.Generator,
) -> tuple[SemiSupervisedSplit, Tensor]:
    """Reduce the task to some ``classes``, with a ``share`` of other classes in the pool.

    Follows the class mismatch of Oliver et al. (NeurIPS 2018, section 4.4), who learn 6 classes of
    CIFAR-10. They vary which four classes the pool has; here its share of other classes is given
    as in Guo et al., "Safe Deep Semi-Supervised Learning for Unseen-Class Unlabeled Data" (ICML
    2020). Both kinds are drawn uniformly from the pool of ``split``.

    Args:
        split: Split of all classes; classes are those of ``clean_labels``.
        classes: Classes to learn, distinct; ``classes[k]`` becomes class k.
        share: Share of other classes in the new pool, in [0, 1], to the nearest sample.
        size: Samples in the new pool; give it to compare shares on pools of one size. ``None``
            takes the largest pool that ``share`` allows.
        generator: Source of the draws, on any device. With the same generator state, fewer samples
            of a kind are a subset of more.

    Returns:
        The new split, with ``num_classes = len(classes)``, and the mask of the samples of other
        classes in its pool, shape (size,), bool, on the device of the pool. Labelled and validation
        samples of other classes are left out; the others keep their order and ``indices``. In the
        pool ``labels`` and ``clean_labels`` of the samples in the mask are 0, a placeholder.

    Raises:
        ValueError: When ``classes``, ``share`` or ``size`` are out of range, no such pool can be
            made, or label noise has changed a label in ``classes`` to one outside.
    """
    table = _new_classes(classes, split.unlabelled.num_classes)
    if not is_number(share, 0, 1):
        raise ValueError(f"share={share} of the unlabelled pool was asked for; use 0 to 1.")
    pool = split.unlabelled
    other = table.to(pool.device)[pool.clean_labels] < 0
    known, unknown = int((~other).sum()), int(other.sum())
    counts = _pool_counts(known, unknown, share, size, list(classes))
    drawn = random_per_class(other.long(), counts.to(pool.device), generator)
    parts = SemiSupervisedSplit(
        labelled=_relabelled(_of_classes(split.labelled, table), table),
        unlabelled=_relabelled(pool.subset(drawn), table),
        validation=_relabelled(_of_classes(split.validation, table), table),
    )
    return parts, other[drawn]


def _new_classes(classes: Sequence[int], num_classes: int) -> Tensor:
    """Return a table from old class to new, −1 for those to leave out."""
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes={list(classes)} was given; name at least one class, and each only once."
        )
    if min(classes) < 0 or max(classes) >= num_classes:
        raise ValueError(
            f"classes={list(classes)} was given for data of {num_classes} classes; use 0 to "
            f"{num_classes - 1}."
        )
    table = torch.full((num_classes,), -1, device="cpu")
    table[as_tensor(classes)] = torch.arange(len(classes), device="cpu")
    return table


def _pool_counts(
    known: int, unknown: int, share: float, size: int | None, classes: list[int]
) -> Tensor:
    # Rounded first, so that rounding errors lose no sample: 3 / (1 − 0.7) is below 10 in doubles.
    bounds = [
        math.floor(round(available / part, 9))
        for available, part in ((known, 1 - share), (unknown, share))
        if part > 0
    ]
    largest = min(bounds)
    have = f"the pool has {known} samples of classes {classes} and {unknown} of others"
    if largest < 1:
        raise ValueError(
            f"A share of {share} from other classes was asked of an unlabelled pool, but {have}; "
            "use another share or other classes."
        )
    if size is not None and not 1 <= size <= largest:
        raise ValueError(
            f"A pool of size={size} with a share of {share} from other classes was asked for, but "
            f"{have}; use a size from 1 to {largest}."
        )
    total = largest if size is None else size
    others = round(share * total)
    return as_tensor([total - others, others])


def _of_classes(data: LabelledTensors, table: Tensor) -> LabelledTensors:
    return data.subset(table.to(data.device)[data.clean_labels] >= 0)


def _relabelled(data: LabelledTensors, table: Tensor) -> LabelledTensors:
    """Give ``data`` its new labels; samples of other classes get 0."""
    table = table.to(data.device)
    labels, clean = table[data.labels], table[data.clean_labels]
    strayed = int(((labels < 0) & (clean >= 0)).sum())
    if strayed:
        raise ValueError(
            f"out_of_distribution_pool was given {strayed} samples of the chosen classes whose "
            "noisy labels name other classes; choose the classes first and add the noise after."
        )
    labels = torch.where(clean < 0, 0, labels)
    return LabelledTensors(
        data.inputs, labels, clean.clamp(min=0), data.indices, int(table.max()) + 1
    )
