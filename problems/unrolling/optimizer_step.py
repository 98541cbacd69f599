"""Interface of an optimizer step, for its adjoint and its replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class OptimizerStep(Protocol):
    """The optimizer step of a problem."""

    @property
    def name(self) -> str:
        """The problem's name, for messages."""

    @property
    def optimizer(self) -> Any:
        """The torch optimizer; ``None`` if there is none."""

    @property
    def is_custom(self) -> bool:
        """Whether the problem overrides ``custom_optimizer_step``."""

    @property
    def trained(self) -> list[Tensor]:
        """The trainable parameters."""

    @property
    def clipping(self) -> float:
        """The maximal norm of the gradient; 0 for no clipping."""

    @property
    def is_scaled(self) -> bool:
        """Whether a loss scaler may skip steps."""

    @property
    def is_autocast(self) -> bool:
        """Whether training computes in 16 bits by autocast."""

    @property
    def per_loop(self) -> int:
        """Number of steps in a loop."""

    @property
    def has_learned_settings(self) -> bool:
        """Whether an upper problem learns some of its settings."""

    def learned_settings(self, count: int) -> Sequence[Mapping[str, Tensor]]:
        """Return the learned settings of step number ``count`` with their graph, one mapping per
        parameter group."""

    @property
    def has_learned_start(self) -> bool:
        """Whether an upper problem learns the start of a loop."""

    @property
    def start_moves(self) -> bool:
        """Whether the start of a loop may move parameters, or put others in their place."""

    def start_of_loop(self) -> Mapping[Tensor, Tensor]:
        """Return the learned start of a loop with its graph, per parameter."""

    def whole_state(self) -> AbstractContextManager[Mapping[Tensor, Mapping[str, Tensor]]]:
        """Yield the optimizer's state per parameter, gathered from all processes."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to ``.grad`` of the trainable parameters."""

    def average_gradients(self) -> None:
        """Average ``.grad`` over processes."""
