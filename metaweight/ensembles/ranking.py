"""Selection and weighting of samples by the rank of their score.

Samples are sorted by score, ``r_i`` in 0 … n − 1 with ties in the order given. With
``a = ⌊n · low⌋`` and ``b = ⌊n · high⌋`` (a product within 1e-9 of an integer counts as it)::

    resample:  the samples with a ≤ r_i < b
    reweight:  ramp(r_i, a) for r_i < a,   1 in between,   ramp(n − 1 − r_i, n − b) for r_i ≥ b

so the easiest and the hardest samples of a tail of ``t`` samples count least. ``ramp(k, t)`` rises
from 0 at the extreme ``k = 0``: ``k / t`` in mode ``"linear"``, and ``⌊k / ⌊t / 10⌋⌋ / 10``, at
most 1, in mode ``"binned"``, ten steps of equal width. Where a tail has fewer than ten samples
these have no width, and ``"binned"`` leaves all its weights at 1; at ten samples the modes agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metaweight._host import as_tensor
from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_number

ReweightMode = Literal["linear", "binned"]

_BINS = 10


@dataclass(frozen=True)
class RankRange:
    """The middle of a ranking, between two shares of it.

    Args:
        low: Share of the samples below it.
        high: Share of the samples below its end.

    Raises:
        ConfigurationError: Unless 0 ≤ low < high ≤ 1.
    """

    low: float = 0.05
    high: float = 0.95

    def __post_init__(self) -> None:
        if not (is_number(self.low, 0, 1) and is_number(self.high, 0, 1) and self.low < self.high):
            raise ConfigurationError(
                f"low={self.low}, high={self.high} were given; use shares of the ranked samples "
                "with 0 <= low < high <= 1, such as 0.05 and 0.95."
            )

    def bounds(self, size: int) -> tuple[int, int]:
        """Return the first rank in the middle and the first rank after it, of ``size``."""
        return _share(size, self.low), _share(size, self.high)


def resample(scores: Any, low: float = 0.05, high: float = 0.95) -> Tensor:
    """Return which samples remain when the lowest and the highest scores are left out.

    Reads ``scores`` on the host once.

    Args:
        scores: One number per sample, shape (N,): a tensor, an array or a list.
        low: Share of the samples to leave out at the low end.
        high: Share of the samples below the high end left out.

    Returns:
        Their positions by ascending score, shape (M,), int64, on the device of ``scores``.

    Raises:
        ConfigurationError: Unless 0 ≤ low < high ≤ 1.
        DataError: When nothing would remain, or scores are not one number per sample.
    """
    middle = RankRange(low, high)
    scores = checked_scores(scores)
    first, last = middle.bounds(len(scores))
    if first == last:
        raise DataError(
            f"resample(low={low}, high={high}) selects none of {len(scores)} samples; use shares "
            "further apart."
        )
    return torch.argsort(scores, stable=True)[first:last]


def reweight(
    scores: Any, low: float = 0.05, high: float = 0.95, mode: ReweightMode = "linear"
) -> Tensor:
    """Return a weight in [0, 1] per sample that falls to 0 at the lowest and the highest scores.

    Reads ``scores`` on the host once.

    Args:
        scores: One number per sample, shape (N,): a tensor, an array or a list.
        low: Share of the samples in the lower tail.
        high: Share of the samples below the upper tail.
        mode: How weights fall within a tail; see the module.

    Returns:
        Weights in the order of ``scores``, shape (N,), on their device, in their dtype or in single
        precision, whichever is finer.

    Raises:
        ConfigurationError: Unless 0 ≤ low < high ≤ 1 and the mode is known.
        DataError: When scores are not one number per sample.
    """
    middle = RankRange(low, high)
    require_mode(mode)
    scores = checked_scores(scores)
    size = len(scores)
    first, last = middle.bounds(size)
    ramp = _linear if mode == "linear" else _binned
    by_rank = torch.ones(size, dtype=scores.dtype, device=scores.device)
    by_rank[:first] = ramp(first, by_rank)
    by_rank[last:] = ramp(size - last, by_rank).flip(0)
    return torch.empty_like(by_rank).scatter_(0, torch.argsort(scores, stable=True), by_rank)


def require_mode(mode: str) -> None:
    """Refuse a mode that :func:`reweight` does not have.

    Raises:
        ConfigurationError: Naming the modes it has.
    """
    if mode not in get_args(ReweightMode):
        raise ConfigurationError(
            f"mode={mode!r} was asked for; use one of {', '.join(get_args(ReweightMode))}."
        )


def checked_scores(given: Any) -> Tensor:
    """Return scores as a tensor (N,) in single precision or better, without a graph.

    Raises:
        DataError: For another shape, for no samples, or for nan scores.
    """
    scores: Tensor = as_tensor(given).detach()
    if scores.ndim != 1 or not len(scores):
        raise DataError(
            f"Scores of shape {tuple(scores.shape)} were given; give one number per sample, shape "
            "(N,), for at least one sample."
        )
    if not scores.is_floating_point() or scores.dtype.itemsize < 4:
        scores = scores.float()
    missing = int(scores.isnan().sum())
    if missing:
        raise DataError(
            f"{missing} of {len(scores)} scores are nan, which has no rank; the members' outputs "
            "or the metric are not finite there."
        )
    return scores


def _share(size: int, share: float) -> int:
    return math.floor(round(size * share, 9))


def _linear(tail: int, like: Tensor) -> Tensor:
    return torch.arange(tail, dtype=like.dtype, device=like.device) / max(tail, 1)


def _binned(tail: int, like: Tensor) -> Tensor:
    width = tail // _BINS
    if not width:
        return like.new_ones(tail)
    steps = torch.arange(tail, device=like.device) // width
    return steps.clamp(max=_BINS).to(like.dtype) / _BINS
