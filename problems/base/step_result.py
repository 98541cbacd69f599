"""What a step leaves to be logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import HypergradientError


class StepResult:
    """What a step leaves to be logged; nothing is detached or read until somebody asks.

    Args:
        loss: The loss, as it was differentiated.
        metrics: What else ``training_step`` returned.
        sample_weights: The weights of a problem that declares them, shape (B,), without a graph.
        error: Why its hypergradient could not be formed.

    Attributes:
        skipped: Whether the optimizer step that the batch completes was skipped.
        overflow: Whether the gradient is too large for the present loss scale, so that the loss
            scaler skips the step; noted by whoever looks.
        own: Whether this process's own gradient is finite, a 0-dim tensor, where it has been
            averaged over several and somebody may refuse it.
    """

    __slots__ = ("_loss", "error", "metrics", "overflow", "own", "sample_weights", "skipped")

    def __init__(
        self,
        loss: Tensor,
        metrics: Mapping[str, Any],
        sample_weights: Tensor | None = None,
        error: HypergradientError | None = None,
    ) -> None:
        self._loss = loss
        self.metrics = metrics
        self.sample_weights = sample_weights
        self.error = error
        self.skipped = False
        self.overflow = False
        self.own: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """The loss without its graph, a 0-dim tensor on its device."""
        return self._loss.detach()
