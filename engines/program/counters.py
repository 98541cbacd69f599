"""Counters of a program, restored when an iteration fails before it has changed anything."""

from __future__ import annotations

from collections.abc import Sequence

from metaweight.problems import Problem
from metaweight.problems.unrolling.initial import moves_at_start

from .instructions import Action, Instruction
from .schedule import Schedule


class Counters:
    """Counters from before an iteration, and whether anything has been changed since.

    Args:
        problems: The problems.
        schedule: Their schedule.
    """

    def __init__(self, problems: Sequence[Problem], schedule: Schedule) -> None:
        self._changed = False
        self._schedule = schedule
        self._mark = schedule.mark()
        self._counts = [(p.step_state, p.count, p.step_state.global_step) for p in problems]

    def begins(self, problem: Problem, instruction: Instruction) -> None:
        """Note an instruction that changes the program even when it fails.

        The first micro-batch of a step changes nothing; a later one leaves an accumulation that
        lacks its gradient.
        """
        if self._changed:
            return
        action = instruction.action
        if action is Action.STEP:
            harmless = instruction.first
        elif action is Action.LOOP_START:
            harmless = not moves_at_start(problem)
        else:
            harmless = action is Action.SNAPSHOT
        self._changed = not harmless

    def stepped(self) -> None:
        """Note that a step has been taken, or is about to be taken."""
        self._changed = True

    def put_back(self) -> bool:
        """Restore the counters, unless something has been changed.

        Returns:
            Whether they were restored.
        """
        if self._changed:
            return False
        self._schedule.restore(self._mark)
        for state, count, global_step in self._counts:
            state.begin_step(count, global_step)
        return True
