"""What a schedule says, and the settings and counters that it says it by."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NamedTuple


class Action(Enum):
    """An action of a problem.

    ``REDO`` rolls the inner loop back and takes its last step again; ``KEEP`` keeps a loop that was
    to be rolled back, because no upper problem stepped before the next loop started.
    """

    LOOP_START = "loop start"
    SNAPSHOT = "snapshot"
    STEP = "step"
    REDO = "redo"
    KEEP = "keep"


class Instruction(NamedTuple):
    """One action of one problem.

    Attributes:
        problem: Its name.
        action: The action.
        count: For a step, the problem's step counter after it.
        first: For a step, whether its micro-batch is the first of an accumulation.
        last: For a step, whether its micro-batch completes the accumulation, so that parameters
            change.
        record: For a step, whether it will be replayed: by a hypergradient or a roll-back. For the
            start of a loop, whether steps of earlier ones may still be.
        settled: For a step, whether it is final; a step that will be rolled back is not.
    """

    problem: str
    action: Action
    count: int = 0  # type: ignore[assignment] # replaces tuple.count
    first: bool = True
    last: bool = True
    record: bool = False
    settled: bool = True

    def __str__(self) -> str:
        text = self.action.value
        if self.action is Action.STEP:
            text += f" {self.count}"
            text += " (recorded)" if self.record else ""
        return text


@dataclass(frozen=True)
class Rhythm:
    """The settings that decide when upper updates follow a problem's steps.

    Attributes:
        unroll_steps: Optimizer steps between two upper updates.
        accumulation: Micro-batches per optimizer step.
        warmup: Steps before the first upper update.
        roll_back: Whether its last step is taken again once the upper problems have stepped.
        recorded_updates: Optimizer steps before an upper update that a hypergradient will replay.
    """

    unroll_steps: int = 1
    accumulation: int = 1
    warmup: int = 0
    roll_back: bool = False
    recorded_updates: int = 1

    @cached_property
    def loop(self) -> int:
        """Steps of an inner loop, micro-batches counted one by one."""
        return self.unroll_steps * self.accumulation

    def is_upper_update(self, count: int, every: int = 1, since: int = 0) -> bool:
        """Return whether upper problems become due after step ``count``.

        Args:
            count: The step.
            every: Inner loops from one upper update to the next.
            since: The step from which these are counted.
        """
        return count > self.warmup and (count - since) % (self.loop * every) == 0


PLAIN = Rhythm()


@dataclass
class Progress:
    """State of one problem in the schedule; kept when the graph is changed.

    Attributes:
        count: Steps taken.
        loop_open: Whether the problem is inside an inner loop.
        snapshot_taken: Whether there is a snapshot of the start of its loop.
        redo_due: Whether its loop is to be rolled back once an upper problem has stepped.
        every: Inner loops from one upper update to the next.
        since: The step from which these are counted.
        ready: Lower problems whose upper update has become due.
    """

    count: int = 0
    loop_open: bool = False
    snapshot_taken: bool = False
    redo_due: bool = False
    every: int = 1
    since: int = 0
    ready: set[str] = field(default_factory=set)

    def copy(self) -> Progress:
        """Return a copy."""
        # Made in every iteration, where dataclasses.replace would take longer than the rest.
        return Progress(
            self.count,
            self.loop_open,
            self.snapshot_taken,
            self.redo_due,
            self.every,
            self.since,
            set(self.ready),
        )
