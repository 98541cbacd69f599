"""The result of a step: its loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import HypergradientError


class StepResult:
    """The loss and metrics of a step; nothing is detached or read before it is used, and the loss
    is detached once.

    Args:
        loss: The loss, as it was differentiated.
        metrics: The other values that ``training_step`` returned.
        sample_weights: The weights of a problem that declares them, shape (B,), without a graph.
        sample_losses: Its sample losses, (B,), likewise.
        sample_logits: The logits that it said they come from, (B, C), likewise.
        error: Why its hypergradient could not be formed.

    Attributes:
        skipped: Whether the optimizer step that the batch completes was skipped.
        drop: Tells, by waiting for the device, whether the loss scaler has refused the step;
            ``None`` without one.
        own: Whether this process's own gradient is finite, a 0-dim tensor; set when the gradient
            has been averaged over processes and a hook may refuse the step.
    """

    __slots__ = (
        *("_loss", "error", "metrics", "_overflow", "drop", "own", "skipped"),
        *("sample_logits", "sample_losses", "sample_weights"),
    )

    def __init__(
        self,
        loss: Tensor,
        metrics: Mapping[str, Any],
        sample_weights: Tensor | None = None,
        sample_losses: Tensor | None = None,
        sample_logits: Tensor | None = None,
        error: HypergradientError | None = None,
    ) -> None:
        self._loss = loss
        self.metrics = metrics
        self.sample_weights = sample_weights
        self.sample_losses = sample_losses
        self.sample_logits = sample_logits
        self.error = error
        self.skipped = False
        self._overflow = False
        self.drop: object = None
        self.own: Tensor | None = None

    @property
    def overflow(self) -> bool:
        """Whether the gradient is too large for the current loss scale, so that the loss scaler
        skips the step; set by the check of finiteness, or known once the scaler has."""
        return self._overflow or bool(self.drop)

    @overflow.setter
    def overflow(self, value: bool) -> None:
        self._overflow = value

    @property
    def loss(self) -> Tensor:
        """The loss without its graph, a 0-dim tensor on its device."""
        if self._loss.requires_grad:
            self._loss = self._loss.detach()
        return self._loss
