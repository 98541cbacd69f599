"""Conversion of tensors, arrays and sequences to NumPy arrays of an expected shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metaweight.problems import ConfigurationError

Numbers = Tensor | NDArray[Any] | Sequence[Any]


def as_array(numbers: Numbers, dimensions: int, what: str) -> NDArray[np.float64]:
    """Return ``numbers`` in double precision, with leading axes of length 1 added if they lack any.

    Args:
        numbers: A tensor on any device, with or without a graph, an array or nested sequences.
        dimensions: Number of axes of the result.
        what: Name of the numbers, for the message.

    Raises:
        ConfigurationError: For ragged or empty numbers, or too many axes.
    """
    if isinstance(numbers, Tensor):
        numbers = numbers.detach().double().cpu().numpy()
    try:
        array = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError) as reason:
        raise ConfigurationError(
            f"{what} could not be read as numbers ({reason}); give rows of equal length."
        ) from reason
    if array.ndim == 0 or array.ndim > dimensions or array.size == 0:
        raise ConfigurationError(
            f"{what} has shape {array.shape}; give numbers with 1 to {dimensions} axes, none empty."
        )
    return array.reshape((1,) * (dimensions - array.ndim) + array.shape)


def require_length(array: NDArray[np.float64], length: int, what: str, other: str) -> None:
    """Refuse an array whose last axis has another length than the values it is drawn against."""
    if array.shape[-1] != length:
        raise ConfigurationError(
            f"{what} has {array.shape[-1]} values but there are {length} {other}; give one each."
        )


def require_any(entries: object, what: str) -> None:
    """Refuse an empty collection, or entries without names."""
    if not isinstance(entries, Mapping):
        raise ConfigurationError(
            f"{what} is of type {type(entries).__name__}; give a dictionary from names to numbers."
        )
    if not len(entries):
        raise ConfigurationError(f"{what} is empty; give at least one entry to draw.")
