"""Samples per class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaweight._labels import read_values
from metaweight.problems import ConfigurationError, LossError


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


def read_positive_counts(who: str, given: Any) -> Tensor:
    """Return counts of at least one sample per class, in single precision, where they were given.

    Raises:
        ConfigurationError: For anything else, naming the function and the first count that is none.
    """
    counts = read_counts(who, given)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise ConfigurationError(
            f"{who} received counts with no sample of class {int(empty[0])}, whose logarithm or "
            "margin is infinite; leave such classes out of the network, or give them a count of 1."
        )
    return beside(given, counts)


def beside(given: Any, numbers: np.ndarray) -> Tensor:
    """Return numbers in single precision on the device of a tensor they were made of, or the
    host."""
    device = given.device if isinstance(given, Tensor) else "cpu"
    return torch.tensor(numbers.tolist(), dtype=torch.float32, device=device)


def per_class(who: str, numbers: Tensor, scores: Tensor) -> Tensor:
    """Return one number per class in the type of ``scores``, (B, C), and on their device.

    Raises:
        LossError: When there are more classes or fewer.
    """
    if len(numbers) != scores.shape[1]:
        raise LossError(
            f"{who} was made for {len(numbers)} classes and received logits of shape "
            f"{tuple(scores.shape)}; give (B, {len(numbers)})."
        )
    return numbers.to(scores, non_blocking=True)
