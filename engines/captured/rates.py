"""Learning rates as tensors, so that a graph of optimizer steps can take others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import torch
from metaweight.problems import Problem
from torch import Tensor

RATE = "lr"


def rates_of(problem: Problem) -> list[float]:
    """Return the present learning rate of each group."""
    return [float(group[RATE]) for group in problem.optimizer.param_groups]


def put_rates(problem: Problem, rates: Sequence[float | Tensor]) -> list[float | Tensor]:
    """Set the learning rate of each group, and return what it was."""
    groups = problem.optimizer.param_groups
    before = [group[RATE] for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group[RATE] = rate
    return before


class Rates:
    """The learning rates of several updates, in one tensor.

    Args:
        rates: Those of each update, one for each group.

    Attributes:
        places: The same, each a tensor without dimensions.
    """

    def __init__(self, rates: Sequence[Sequence[float]]) -> None:
        self._all = _tensor(rates)
        singles = iter(self._all.unbind())
        self.places = [list(islice(singles, len(several))) for several in rates]
        self._written = list(rates)

    def write(self, rates: Sequence[Sequence[float]]) -> None:
        """Write the rates of all updates."""
        if rates != self._written:
            self._all.copy_(_tensor(rates))
            self._written = list(rates)

    def write_at(self, number: int, rates: Sequence[float]) -> None:
        """Write those of one update."""
        self.write([*self._written[:number], rates, *self._written[number + 1 :]])


def _tensor(rates: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(rates)), dtype=torch.float64)
