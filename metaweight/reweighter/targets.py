"""What a network is trained for: what labels say, as tensors, and what outputs mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .label_issues import are_far, residual_issues
from .losses import squared_error

Floats = NDArray[np.float64]


class Targets(ABC):
    """Labels of one kind.

    Attributes:
        outputs: Number of outputs of a network.
        shape: Shape of the outputs for a sample.
        what: What the outputs are called.
        loss: The usual loss, ``loss(outputs, targets) -> (N,)``.
    """

    outputs: int
    shape: tuple[int, ...]
    what: str
    loss: Any

    @abstractmethod
    def require(self, name: str, y: NDArray[Any]) -> None:
        """Refuse further labels that do not fit.

        Raises:
            ValueError: Saying why.
        """

    @abstractmethod
    def encode(self, y: NDArray[Any]) -> Tensor:
        """Return labels as targets of a loss."""

    def kept(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return labels as they are kept for :meth:`issues`."""
        found: NDArray[Any] = self.encode(y).numpy()
        return found

    def strata(self, targets: Tensor) -> Tensor:
        """Return the groups of which each has to be among the clean samples, (N,), int64."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def stratum(self, number: int) -> str:
        """Return words for the samples of one of these groups, after "one"."""
        del number
        return ""

    def confidence(self, outputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """Return how well outputs confirm the targets, (N,): by default by the loss."""
        del outputs, targets
        return -losses

    @abstractmethod
    def predicted(self, outputs: Tensor) -> Floats:
        """Return the probabilities, or the numbers, that outputs stand for."""

    @abstractmethod
    def quality(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return how good outputs are, by the name of the measure."""

    @abstractmethod
    def contradicted(self, given: NDArray[Any], predicted: Floats) -> NDArray[np.bool_]:
        """Return which labels the predictions contradict, (N,)."""

    @abstractmethod
    def issues(self, given: NDArray[Any], predicted: Floats, weights: Floats) -> Any:
        """Return a frame of the labels that the predictions contradict."""

    @abstractmethod
    def saved(self) -> dict[str, Any]:
        """Return the arguments for JSON."""


@dataclass(frozen=True)
class Numbers(Targets):
    """Numbers to predict, ``mean + deviation f(x)``.

    Args:
        mean: Mean of the numbers; 0 to leave them as they are.
        deviation: Their standard deviation; 1 likewise.
    """

    mean: float = 0.0
    deviation: float = 1.0

    outputs = 1
    shape = ()
    what = "one number a sample"
    loss = staticmethod(squared_error)

    @classmethod
    def scaled(cls, y: Floats) -> Numbers:
        """Return the scaling to mean 0 and variance 1 of these numbers."""
        wide = y.astype(np.float64)
        return cls(float(wide.mean()), float(wide.std()) or 1.0)

    def require(self, name: str, y: NDArray[Any]) -> None:
        """Take all numbers."""

    def encode(self, y: NDArray[Any]) -> Tensor:
        """Return the scaled numbers in float64, (N,)."""
        return torch.from_numpy((y.astype(np.float64) - self.mean) / self.deviation)

    def kept(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers."""
        return y.astype(np.float64)

    def predicted(self, outputs: Tensor) -> Floats:
        """Return the numbers that outputs stand for, (N,)."""
        found: Floats = (self.mean + self.deviation * outputs).numpy()
        return found

    def quality(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the coefficient of determination."""
        all_of_it = (targets - targets.mean()).square().sum()
        return {"r2": float(1 - (outputs - targets).square().sum() / all_of_it)}

    def contradicted(self, given: NDArray[Any], predicted: Floats) -> NDArray[np.bool_]:
        """Return which residuals are far from the others."""
        return are_far(given - predicted)

    def issues(self, given: NDArray[Any], predicted: Floats, weights: Floats) -> Any:
        """Return a frame of these numbers, the largest residual first."""
        return residual_issues(given, predicted, weights)

    def saved(self) -> dict[str, Any]:
        """Return mean and deviation."""
        return {"mean": self.mean, "deviation": self.deviation}
