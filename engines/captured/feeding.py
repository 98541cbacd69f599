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
from .drawn import Drawn
from .operations import untraced
from .updates import put_rates, rates_of, take_step

Rates = list[float]


class Eager:
    """Gives batches that were drawn before, then those of the loaders, and notes the learning rates
    of updates.

    Args:
        drawn: The batches that were drawn before.
    """

    def __init__(self, drawn: Drawn) -> None:
        self._queues = drawn.by_problem()
        self._error, self._failed = drawn.error, drawn.failed
        self.rates: list[Rates] = []

    @property
    def is_empty(self) -> bool:
        """Whether all that was drawn has been given, and the error raised."""
        return self._error is None and not any(self._queues.values())

    def draw(self, problem: Problem) -> Any:
        """Return the next batch, or raise what drawing it raised."""
        queue = self._queues.get(problem.name)
        if queue:
            return queue.popleft()
        if self._error is not None and problem.name == self._failed:
            error, self._error = self._error, None
            raise error
        return problem.get_batch()

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


def places_of_rates(updated: Sequence[Problem]) -> list[list[Tensor]]:
    """Return tensors for the learning rates of each update, one for each group."""
    return [[torch.tensor(r, dtype=torch.float64) for r in rates_of(p)] for p in updated]


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
