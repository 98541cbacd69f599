"""What the steps of a period are given in place of what they would read: batches and rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from metaweight.problems import Problem
from torch import Tensor

from .batches import Place
from .drawn import Drawn
from .operations import untraced
from .rates import Rates, put_rates, rates_of
from .updates import take_step


class Eager:
    """Gives batches that were drawn before, then those of the loaders, and notes the learning rates
    of updates.

    Args:
        drawn: The batches that were drawn before.
    """

    def __init__(self, drawn: Drawn) -> None:
        self._queues = drawn.by_problem()
        self._error, self._failed = drawn.error, drawn.failed
        self.rates: list[list[float]] = []

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
        updated: The problem of each update.
    """

    def __init__(self, places: Sequence[Place], updated: Sequence[Problem]) -> None:
        self.places = places
        self._rates = Rates([rates_of(problem) for problem in updated])
        self._next_place, self._updates = iter(places), count()
        self._before: list[Sequence[float | Tensor]] = []
        self.conditions: list[Tensor] = []

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the places of batches."""
        return [tensor for place in self.places for tensor in place.tensors]

    def write(self, rates: Sequence[Sequence[float]]) -> None:
        """Write the learning rates of all updates."""
        self._rates.write(rates)

    def draw(self, problem: Problem) -> Any:
        """Return the place of the next batch."""
        del problem
        return next(self._next_place).batch

    def prepare(self, problem: Problem) -> None:
        """Put the places of learning rates into the optimizer."""
        number = next(self._updates)
        with untraced():
            self._rates.write_at(number, rates_of(problem))
        self._before.append(put_rates(problem, self._rates.places[number]))

    def update(self, problem: Problem) -> None:
        """Take the optimizer step by operations of tensors."""
        try:
            take_step(problem.optimizer)
        finally:
            put_rates(problem, self._before.pop())

    def notes(self, condition: Tensor) -> bool:
        """Note a condition for an error."""
        self.conditions.append(condition)
        return True


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
