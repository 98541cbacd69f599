"""The counters of a program, put back where an iteration errs before it has changed anything."""

from __future__ import annotations

from collections.abc import Sequence

from metaweight.problems import Problem
from metaweight.problems.unrolling.initial import moves_at_start

from .schedule import Action, Instruction, Schedule


class Counters:
    """Where counters stood before an iteration, and whether anything has been changed since.

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
        """Note an instruction that leaves a trace even when it errs.

        The first batch of a step leaves none; a later one leaves the step begun before without its
        gradient.
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
        """Note that a step has been taken, or is about to be."""
        self._changed = True

    def put_back(self) -> bool:
        """Put the counters back, unless something has been changed.

        Returns:
            Whether they were.
        """
        if self._changed:
            return False
        self._schedule.go_back(self._mark)
        for state, count, global_step in self._counts:
            state.begin_step(count, global_step)
        return True
