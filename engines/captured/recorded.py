"""A period that was captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .feeding import Traced
from .inputs import Inputs
from .operations import Replay
from .program_tensors import Labelled

OFTEN = 20
"""Periods left to Python, if not as many were taken, of which is warned."""


@dataclass
class Recorded:
    """A period as a graph.

    Attributes:
        form: The form of the period.
        run: Runs the operations on their inputs, and returns losses and metrics.
        inputs: What they are given.
        places: Where the steps that were captured read batches and learning rates.
        tensors: What they write to.
        settings: Those of optimizers, without learning rates.
        looks: What the program looked like.
        changes: The number of changes of the program at which they were recorded.
        metrics: The metrics of each step, with any tensors in the places of those to come.
        taken: How many periods the graph has been there for.
        left: How many were left to Python, for their batches.
        usual: How far the graph ended from Python where the program was not in doubt.
        is_verified: Whether a period was taken both ways and compared.
        is_in_doubt: Whether the next one is compared, as the program may have been changed.
    """

    form: Any
    run: Replay
    inputs: Inputs
    places: Traced
    tensors: Labelled
    settings: Sequence[Any]
    looks: Sequence[Any]
    changes: int
    metrics: Sequence[Any]
    taken: int = 0
    left: int = 0
    usual: float = 0.0
    is_verified: bool = False
    is_in_doubt: bool = False

    def again(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run the operations on other batches, given their tensors; return losses and metrics."""
        return self.run(self.inputs.given(values))

    def is_mostly_left(self) -> bool:
        """Return whether it is time to warn of batches of other forms."""
        return self.left == OFTEN and self.taken < OFTEN

    def told_of_sizes(self) -> str:
        """Return the warning."""
        return (
            f"EngineConfig(capture=...) left {self.left} periods to Python, whose batches were of "
            f"other sizes than those captured, or with other text or numbers, and took "
            f"{self.taken}; let loaders give batches of one size, such as by drop_last=True, with "
            "nothing but tensors that differ, or leave capture out."
        )


class WrittenBack:
    """Writes the states that methods have kept inside to the tensors that held them before."""

    def __init__(self, states: Sequence[Any]) -> None:
        self._states = states

    def __enter__(self) -> None:
        self._before = [dict(one.kept) for one in self._states]

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            for one, before in zip(self._states, self._before, strict=True):
                one.write_back(before)
