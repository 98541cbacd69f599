"""Means over the processes that train one program together.

Each process evaluates a share of every batch. With losses ``F = mean_r F_r`` and ``L = mean_r L_r``
over processes ``r``, gradients are means of the processes' own. A product with second derivatives
of ``L`` is the mean of those with ``L_r``, all with the same vector, so that a vector is averaged
before a product is taken with it, and the product afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..problem import Problem


class Reduction:
    """Averages over processes; this one over a single process, which changes nothing.

    Every process must ask for the same means in the same order.

    Attributes:
        rank: Number of this process, from 0.
        world: How many processes there are.
        seed: A number all of them know.
    """

    rank: int = 0
    world: int = 1
    seed: int = 0

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over all processes, without a graph."""
        return list(tensors)

    def average_gradients(self, problem: Problem) -> None:
        """Put the mean over processes into ``.grad`` of what ``problem`` trains.

        With them go the running statistics of its batch norms. A parameter without a gradient in
        every process has none afterwards; one that lacks it in some counts as zero there.
        """
        del problem

    def own_optimizer(self, problem: Problem) -> None:
        """Share the state of the problem's optimizer out among processes, if that is asked for."""
        del problem

    def whole_optimizer(self, problem: Problem) -> AbstractContextManager[None]:
        """Inside, the problem's optimizer holds all of its state in every process."""
        del problem
        return nullcontext()
