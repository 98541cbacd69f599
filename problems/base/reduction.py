"""Means over the processes that train one program together.

Each process evaluates a share of every batch. With losses ``F = mean_r F_r`` and ``L = mean_r L_r``
over processes ``r``, gradients are means of the processes' own. A product of the second derivative
of ``L`` with a vector is the mean of the products of those of ``L_r`` with the same vector, so that
the vector is averaged before the product is computed, and the product afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .backward import accumulate, gradients

if TYPE_CHECKING:
    from ..problem import Problem


class Reduction:
    """Averages over processes; this base class is for a single process and changes nothing.

    Every process must call the methods in the same order.

    Attributes:
        rank: Number of this process, from 0.
        world: How many processes there are.
        seed: A number that is the same in all processes.
    """

    rank: int = 0
    world: int = 1
    seed: int = 0

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over all processes, without a graph."""
        return list(tensors)

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the derivative of this process's loss by each input, and nothing by those it does
        not depend on; by sharded inputs that of the mean loss over processes, sharded too."""
        return gradients(loss, inputs)

    def backward(self, loss: Tensor, inputs: Sequence[Tensor]) -> None:
        """Add what :meth:`gradients` returns to ``.grad`` of the inputs, and of nothing else."""
        accumulate(loss, inputs)

    def average_gradients(self, problem: Problem) -> None:
        """Replace ``.grad`` of the parameters that ``problem`` trains by its mean over processes.

        The running statistics of its batch norms are averaged too. A parameter without a gradient
        in any process has none afterwards; where only some lack it, it counts as zero there.
        """
        del problem

    def shard(self, problems: Sequence[Problem]) -> None:
        """Keep a shard of the problems' parameters in every process, if that is asked for.

        Raises:
            ConfigurationError: For a problem that cannot be served so; all are then as before.
        """
        del problems

    def own_module(self, problem: str, module: nn.Module) -> None:
        """Take over the module of a problem, before its first use: give it the values of the first
        process, and synchronise its batch norms if that is asked for.

        Raises:
            GraphError: When it differs between processes.
            ConfigurationError: When it cannot be served.
        """
        del problem, module

    def own_optimizer(self, problem: Problem) -> None:
        """Shard the state of the problem's optimizer over processes, if the strategy asks for
        it."""
        del problem

    def whole_optimizer(self, problem: Problem) -> AbstractContextManager[None]:
        """Return a context in which each process holds the whole state of the problem's
        optimizer."""
        del problem
        return nullcontext()
