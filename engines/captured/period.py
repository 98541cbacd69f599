"""What a schedule says of the iterations up to the next moment between loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..program.instructions import Action, Instruction
from ..program.schedule import Mark, Schedule

LONGEST = 1000
"""Iterations more than asked for, after which no such moment is looked for any more."""


@dataclass(frozen=True)
class Period:
    """The instructions of some iterations.

    Attributes:
        iterations: For each, its instructions.
        after: The state of the schedule after them, to be gone to once.
    """

    iterations: Sequence[Sequence[Instruction]]
    after: Mark

    def __len__(self) -> int:
        return len(self.iterations)

    @property
    def form(self) -> list[list[tuple[Any, ...]]]:
        """The instructions without the numbers of steps, which differ from period to period."""
        return [[(*one[:2], *one[3:]) for one in several] for several in self.iterations]

    @property
    def steps(self) -> list[Instruction]:
        """All steps, in order."""
        return [one for several in self.iterations for one in several if one.action is Action.STEP]


def next_period(schedule: Schedule, leaves: Sequence[str], least: int = 1) -> Period | None:
    """Return the period of at least so many iterations that begins now, or nothing inside a loop or
    without an end in sight; the schedule is unchanged."""
    if not schedule.is_between_loops():
        return None
    iterations: list[list[Instruction]] = []
    mark, ends = schedule.mark(), False
    try:
        while not ends and len(iterations) < least + LONGEST:
            iterations.append([one for leaf in leaves for one in schedule.advance(leaf)])
            ends = len(iterations) >= least and schedule.is_between_loops()
    finally:
        after = schedule.exchange(mark)
    return Period(iterations, after) if ends else None
