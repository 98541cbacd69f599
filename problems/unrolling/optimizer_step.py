"""An optimizer's step, as far as its adjoint and its repetition see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class OptimizerStep(Protocol):
    """How a problem turns gradients into a step of its parameters."""

    @property
    def name(self) -> str:
        """What to call the problem in a message."""

    @property
    def optimizer(self) -> Any:
        """Its optimizer; nothing where its steps are its own."""

    @property
    def is_custom(self) -> bool:
        """Whether the problem takes steps of its own, rather than its optimizer's."""

    @property
    def callbacks(self) -> Sequence[str]:
        """The names of methods that change gradients before a step or parameters after it."""

    @property
    def trained(self) -> list[Tensor]:
        """The parameters it moves."""

    @property
    def clipping(self) -> float:
        """The largest norm of a gradient; 0 where it may have any."""

    @property
    def is_scaled(self) -> bool:
        """Whether a loss scaler may leave steps out."""

    @property
    def per_loop(self) -> int:
        """How many steps there are from one start of a loop to the next."""

    @property
    def has_learned_settings(self) -> bool:
        """Whether an upper problem owns some of its settings."""

    def learned_settings(self) -> Sequence[Mapping[str, Tensor]]:
        """Return the settings an upper problem owns, with their graph, one mapping per parameter
        group."""

    @property
    def has_learned_start(self) -> bool:
        """Whether an upper problem owns where a loop starts."""

    def start_of_loop(self) -> Mapping[Tensor, Tensor]:
        """Return where a loop starts, with its graph, per parameter that an upper problem owns."""

    def whole_state(self) -> AbstractContextManager[Mapping[Tensor, Mapping[str, Tensor]]]:
        """Yield the optimizer's state per parameter, gathered where processes share it out."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to ``.grad`` of the parameters it moves."""

    def average_gradients(self) -> None:
        """Put the mean over processes into ``.grad``."""
