"""Split of a small, balanced, clean meta set from the training data."""

from __future__ import annotations

import torch

from metaweight.problems.base.settings import is_count

from ._selection import random_per_class
from .labelled import LabelledTensors


def meta_split(
    data: LabelledTensors, per_class: int, *, generator: torch.Generator
) -> tuple[LabelledTensors, LabelledTensors]:
    """Take ``per_class`` random samples of every class out of ``data`` as its meta set.

    Classes are those of ``clean_labels``, which the meta set also has as its ``labels``: it
    represents data whose labels were checked by hand. The rest keeps its labels, noisy or not.

    Args:
        data: Data to split.
        per_class: Meta samples of each class, at least 1.
        generator: Source of the draws, on any device.

    Returns:
        ``(rest, meta)``: disjoint, together all of ``data``, each in the order of ``data``; meta
        holds C · per_class samples.

    Raises:
        ValueError: When ``per_class`` is below 1, or a class has fewer samples than that.
    """
    if not is_count(per_class, least=1):
        raise ValueError(f"meta_split was asked for {per_class} samples a class; use at least 1.")
    available = torch.bincount(data.clean_labels, minlength=data.num_classes)
    fewest = int(available.min())
    if fewest < per_class:
        raise ValueError(
            f"meta_split was asked for {per_class} samples of each of {data.num_classes} classes, "
            f"but class {int(available.argmin())} has only {fewest}; use per_class ≤ {fewest} or "
            "give more data."
        )
    counts = torch.full_like(available, per_class)
    chosen = random_per_class(data.clean_labels, counts, generator)
    kept = torch.ones(len(data), dtype=torch.bool, device=data.device)
    kept[chosen] = False
    meta = data.subset(chosen)
    return data.subset(kept), meta.with_labels(meta.clean_labels)
