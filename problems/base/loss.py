"""The loss in what a ``training_step`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .errors import LossError

TrainingOutput = Tensor | Mapping[str, Any]
"""A loss, or a mapping with it under ``"loss"`` and values to log."""


def loss_of(name: str, output: TrainingOutput) -> Tensor:
    """Return the loss in what ``training_step`` of problem ``name`` returned, as a 0-dim tensor.

    Raises:
        LossError: When there is none, or it is not one real number.
    """
    loss: Any = output
    if type(loss) is Tensor and loss.ndim == 0 and loss.is_floating_point():
        return loss
    if not isinstance(loss, Tensor) and isinstance(output, Mapping):
        loss = output.get("loss")
    if not isinstance(loss, Tensor):
        raise LossError(
            f"training_step of problem {name!r} returned {type(output).__name__} "
            f"without a loss tensor; return the loss, or a dictionary with it under 'loss'."
        )
    if loss.numel() != 1:
        raise LossError(
            f"training_step of problem {name!r} returned a loss of shape "
            f"{tuple(loss.shape)}; reduce it to one number, for instance with .mean()."
        )
    if loss.is_complex():
        raise LossError(
            f"training_step of problem {name!r} returned a complex loss, which has no "
            "direction of descent; return a real number, for instance its .abs()."
        )
    return loss.reshape(()) if loss.ndim else loss


class Evaluated(NamedTuple):
    """What a problem computes of a batch.

    Attributes:
        loss: The loss, a 0-dim tensor.
        metrics: What else ``training_step`` returned, to be logged.
        sample_weights: The weights of a problem that declares them, shape (B,), without a graph.
        sample_losses: Its sample losses, (B,), likewise.
        sample_logits: The logits that it said they come from, (B, C), likewise.
    """

    loss: Tensor
    metrics: Mapping[str, Any]
    sample_weights: Tensor | None = None
    sample_losses: Tensor | None = None
    sample_logits: Tensor | None = None
