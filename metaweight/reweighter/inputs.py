"""Samples of numbers as the tensors that a network is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from metaweight.problems import DataError


@dataclass(frozen=True)
class Inputs:
    """How samples become inputs: as they are, or as scaled features ``(x - mean) / deviation``.

    Args:
        dtype: Type of the inputs.
        mean: Mean of each feature, (F,), float64; ``None`` to leave samples as they are.
        deviation: Standard deviation of each, likewise; 1 for one that does not vary.
        whole: Whether inputs are integers, such as rows of an embedding.
    """

    dtype: torch.dtype
    mean: NDArray[np.float64] | None = None
    deviation: NDArray[np.float64] | None = None
    whole: bool = False

    @classmethod
    def scaled(cls, X: NDArray[np.generic]) -> Inputs:
        """Return the scaling to mean 0 and variance 1 of these samples, in float64."""
        scaler = StandardScaler().fit(X.reshape(len(X), -1))
        return cls(torch.float64, scaler.mean_, scaler.scale_)

    @classmethod
    def of_module(cls, module: nn.Module) -> Inputs:
        """Return samples as they are, in the floating type of a network's parameters."""
        found = (p.dtype for p in module.parameters() if p.is_floating_point())
        return cls(next(found, torch.get_default_dtype()))

    def of(self, samples: Any, names: Iterable[str] | None = None) -> Any:
        """Return the inputs of samples, (N, …), in a network's type.

        Args:
            samples: An array; a tensor, of which only one of floating numbers changes its type; or
                several tensors by name.
            names: Which of these to take.
        """
        if isinstance(samples, Mapping):
            return {name: self.of(samples[name]) for name in (samples if names is None else names)}
        if isinstance(samples, Tensor):
            return samples.to(self.dtype) if samples.is_floating_point() else samples
        return self.tensor(samples) if isinstance(samples, np.ndarray) else samples

    def tensor(self, X: NDArray[np.generic]) -> Tensor:
        """Return the inputs of samples of a table, (N, …)."""
        if self.whole:
            if X.dtype.kind not in "iu" and not (np.rint(X) == X).all():
                raise DataError(
                    "The module takes whole numbers, but received samples of others, such as "
                    f"{X[np.rint(X) != X][0]}; give integers, as to fit."
                )
            return torch.from_numpy(X.astype(np.int64))
        if self.mean is None or self.deviation is None:
            return torch.tensor(X, dtype=self.dtype)
        flat = X.reshape(len(X), -1).astype(np.float64)
        return torch.from_numpy((flat - self.mean) / self.deviation)
