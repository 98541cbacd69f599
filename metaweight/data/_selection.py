"""Random choice of a given number of samples from every class."""

from __future__ import annotations

import torch
from torch import Tensor

from metaweight._generator import checked_generator


def random_per_class(labels: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Choose ``counts[c]`` samples of each class c, uniformly and without replacement.

    Args:
        labels: Shape (N,), int64, in [0, C).
        counts: Shape (C,), int64, on the device of ``labels``; a class that has fewer samples
            gives all it has.
        generator: Source of the draws, on any device.

    Returns:
        Positions in ascending order, int64, on the device of ``labels``.
    """
    checked_generator("A split", generator)
    size = len(labels)
    order = torch.randperm(size, generator=generator, device=generator.device).to(labels.device)
    grouped = order[torch.argsort(labels[order], stable=True)]
    classes = labels[grouped]
    available = torch.bincount(labels, minlength=len(counts))
    first = available.cumsum(0) - available
    rank = torch.arange(size, device=labels.device) - first[classes]
    return grouped[rank < counts[classes]].sort().values
