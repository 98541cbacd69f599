"""A batch of labelled and unlabelled samples."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metaweight.problems import DataError

from .._batch_reader import BatchReader
from .._labels import read_labels


class SemiSupervisedBatch(NamedTuple):
    """A batch with all a step depends on, so that a hypergradient finds the same loss again."""

    inputs: Tensor
    """Labelled inputs, (B_l, …)."""

    labels: Tensor
    """(B_l,), int64, -1 for samples without a label, which the labelled loss leaves out."""

    unlabelled: Tensor
    """(B_u, …)."""

    indices: Tensor | None
    """Positions of the unlabelled samples, (B_u,), where their loader gives them."""

    weight: float
    """Weight of the consistency loss."""

    seed: int
    """Seed of the noise of the consistency passes."""


def read_pair(
    reader: BatchReader, given: Any, pool: Any, weight: float, seed: int
) -> SemiSupervisedBatch:
    """Return a labelled and an unlabelled batch as one.

    Args:
        reader: Where their parts are.
        given: The labelled batch.
        pool: The unlabelled batch: inputs alone, or with other parts.
        weight: Weight of the consistency loss.
        seed: Seed of the noise.

    Raises:
        DataError: For batches of another kind, saying which loader they come from.
    """
    inputs, labels, _ = reader.read_tensor(given, where=", from its first loader,")
    unlabelled, _, indices = reader.read_tensor(
        pool, labelled=False, where=", from its second loader,"
    )
    read = read_labels(labels, shape=inputs.shape[:1], device=inputs.device, error=DataError)
    return SemiSupervisedBatch(inputs, read.marked(), unlabelled, indices, weight, seed)
