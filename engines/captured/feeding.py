"""What the steps of a period are given in place of what they would read: batches and rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from metaweight.problems import Problem
from metaweight.problems.base.nested import leaves
from torch import Tensor

from .batches import Place
from .operations import untraced
from .updates import put_rates, rates_of, take_step

Rates = list[float]


class Eager:
    """Gives batches that were drawn before, and notes the learning rates of updates.

    Args:
        batches: The batches, step by step.
        error: What was raised in place of the next one.
    """

    def __init__(self, batches: Sequence[Any], error: Exception | None = None) -> None:
        self._batches = iter(batches)
        self._error = error
        self.rates: list[Rates] = []

    def draw(self, problem: Problem) -> Any:
        """Return the next batch, or raise what drawing it raised."""
        del problem
        for batch in self._batches:
            return batch
        raise self._error or IndexError("All batches that were drawn have been given.")

    def prepare(self, problem: Problem) -> None:
        """Note the learning rates."""
        self.rates.append(rates_of(problem))

    def update(self, problem: Problem) -> None:
        """Take the optimizer's own step."""
        problem.custom_optimizer_step()

    def notes(self, condition: Tensor) -> bool:
        """Leave a condition to be looked at now."""
        del condition
        return False


class Traced:
    """Gives the places of batches and of learning rates to steps that are traced.

    Args:
        places: Those of batches, step by step.
        rates: Those of learning rates, a tensor for each group, update by update.
    """

    def __init__(self, places: Sequence[Place], rates: Sequence[list[Tensor]]) -> None:
        self.places, self.rates = places, rates
        self._next_place, self._next_rates = iter(places), iter(rates)
        self._before: list[Sequence[float | Tensor]] = []
        self.conditions: list[Tensor] = []
        self._tensors = [tensor for place in places for tensor in place.tensors]
        self._written: list[Rates] = []

    @torch.no_grad()
    def write(self, values: Sequence[Tensor], rates: Sequence[Rates]) -> None:
        """Write the tensors of batches, and the learning rates of all updates."""
        if values:
            torch._foreach_copy_(self._tensors, list(values))
        if rates != self._written:
            for places, several in zip(self.rates, rates, strict=True):
                write_rates(places, several)
            self._written = list(rates)

    def draw(self, problem: Problem) -> Any:
        """Return the place of the next batch."""
        del problem
        return next(self._next_place).batch

    def prepare(self, problem: Problem) -> None:
        """Put the places of learning rates into the optimizer."""
        places = next(self._next_rates)
        with untraced():
            write_rates(places, rates_of(problem))
        self._before.append(put_rates(problem, places))

    def update(self, problem: Problem) -> None:
        """Take the optimizer step by operations of tensors."""
        try:
            take_step(problem.optimizer)
        finally:
            put_rates(problem, self._before.pop())

    def without(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return those of some tensors that are no places."""
        own = {id(t) for t in leaves([[place.batch for place in self.places], self.rates])}
        return [t for t in tensors if id(t) not in own]

    def notes(self, condition: Tensor) -> bool:
        """Note a condition for an error."""
        self.conditions.append(condition)
        return True


def write_rates(places: Sequence[Tensor], rates: Rates) -> None:
    """Write learning rates to their places."""
    for place, rate in zip(places, rates, strict=True):
        place.fill_(rate)


@contextmanager
def fed(problems: Sequence[Problem], feeding: Eager | Traced) -> Iterator[None]:
    """Let the steps of problems be given what ``feeding`` has, inside a ``with`` statement."""
    for problem in problems:
        problem.step_state.feed_by(feeding)
    try:
        yield
    finally:
        for problem in problems:
            problem.step_state.feed_by(None)
