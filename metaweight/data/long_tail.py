"""Long-tailed subsets of balanced data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metaweight._host import as_tensor
from metaweight.problems.base.settings import is_count, is_number

from ._selection import random_per_class
from .labelled import LabelledTensors


def long_tailed_counts(largest: int, factor: float, num_classes: int) -> list[int]:
    """Compute exponentially falling class sizes: ``⌊largest · factor^(−c / (C − 1))⌋``.

    The profile of Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019).
    A value within 1e-9 of an integer counts as this integer, so that rounding cannot lose a sample
    (49 · 49⁻¹ is below 1 in doubles).

    Args:
        largest: Size of the class of rank 0, at least 1.
        factor: Imbalance factor, largest over smallest class, in [1, largest].
        num_classes: Number of classes C ≥ 2.

    Returns:
        Sizes by rank c = 0 … C − 1, all at least 1.

    Raises:
        ValueError: When an argument is out of range, or a class would be left empty.
    """
    if not is_count(num_classes, least=2):
        raise ValueError(f"num_classes={num_classes} was given; a long tail needs at least 2.")
    if not is_number(factor, least=1):
        raise ValueError(f"Imbalance factor {factor} was asked for; use a finite factor ≥ 1.")
    if largest < factor:
        raise ValueError(
            f"Imbalance factor {factor} was asked of a largest class of {largest} samples, which "
            f"leaves the rarest class empty; use a factor ≤ {largest}."
        )
    last = num_classes - 1
    return [math.floor(round(largest * factor ** (-c / last), 9)) for c in range(num_classes)]


def long_tailed(
    data: LabelledTensors,
    factor: float,
    *,
    class_order: Sequence[int] | Tensor | None = None,
    generator: torch.Generator,
) -> LabelledTensors:
    """Choose a random subset whose class sizes are those of :func:`long_tailed_counts`.

    The class of rank 0 has as many samples as the smallest class of ``data``, by ``labels``. Make
    the tail before any label noise, so that these are the true classes.

    Args:
        data: Data to choose from, every class present.
        factor: Imbalance factor, largest over smallest class, at least 1.
        class_order: ``class_order[rank]`` is the class of that rank, rank 0 the largest; a
            permutation of 0 … C − 1. ``None`` takes the classes in index order.
        generator: Source of the draws, on any device.

    Returns:
        The chosen samples in the order they have in ``data``.

    Raises:
        ValueError: When ``class_order`` is not a permutation of the classes, a class would be left
            empty, or ``factor`` is out of range.
    """
    classes = data.num_classes
    order = list(range(classes)) if class_order is None else [int(c) for c in class_order]
    if sorted(order) != list(range(classes)):
        raise ValueError(
            f"class_order={order} was given for {classes} classes; give every class from 0 to "
            f"{classes - 1} once, largest first."
        )
    by_rank = long_tailed_counts(int(data.class_counts().min()), factor, classes)
    counts = torch.empty(classes, dtype=torch.int64, device="cpu")
    counts[as_tensor(order)] = as_tensor(by_rank)
    return data.subset(random_per_class(data.labels, counts.to(data.device), generator))
