"""Samples per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from metaweight._labels import read_values
from metaweight.problems import ConfigurationError


def read_counts(who: str, given: Any) -> np.ndarray:
    """Return counts, one number of samples per class, in the double precision that a device may
    lack.

    Raises:
        ConfigurationError: For anything else, naming the function and the first count that is none.
    """
    counts = read_values(given, f"{who}: counts", ConfigurationError)
    index: Any = getattr(given, "index", None)
    sorted_otherwise = hasattr(index, "tolist") and index.tolist() != list(range(len(counts)))
    if counts.ndim != 1 or not counts.numel() or counts.is_complex() or sorted_otherwise:
        kind = type(given).__name__
        order = f", in the order of classes {index.tolist()[:10]}" if sorted_otherwise else ""
        raise ConfigurationError(
            f"{who} received counts of type {kind} and shape {tuple(counts.shape)}{order}; give "
            "one number of samples per class, from class 0 on, such as "
            "torch.bincount(labels, minlength=classes)."
        )
    wide = np.array(counts.tolist(), dtype=np.float64)
    wrong = np.flatnonzero(~(wide >= 0) | np.isinf(wide))
    if len(wrong):
        place = int(wrong[0])
        raise ConfigurationError(
            f"{who} received counts of shape {tuple(counts.shape)} with {counts[place].item()} at "
            f"index {place}; give one number of samples of at least 0 per class, such as "
            "torch.bincount(labels, minlength=classes)."
        )
    return wide
