"""A batch of labelled and unlabelled samples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
