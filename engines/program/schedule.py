"""The order of execution as data: the actions of all problems, step by step.

A schedule knows names, edges and a few numbers. It can be printed and tested without running
anything::

    >>> schedule = Schedule({"inner": Rhythm(unroll_steps=2)}, {"inner": ["outer"]})
    >>> print(schedule.preview(["inner"], 2))
    1 inner: loop start, step 1
    2 inner: step 2 (recorded)
      outer: loop start, step 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple


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
        count: Its step counter after the action.
        first: For a step, whether its micro-batch is the first of an accumulation.
        last: For a step, whether its micro-batch completes the accumulation, so that parameters
            change.
        record: For a step, whether it will be replayed: by a hypergradient or a roll-back.
        settled: For a step, whether it is final; a step that will be rolled back is not.
    """

    problem: str
    action: Action
    count: int  # type: ignore[assignment] # replaces tuple.count
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


Mark = list[tuple[str, dict[str, Any]]]


class Schedule:
    """Turns steps of leaf problems into instructions.

    A leaf steps at every call of :meth:`advance`. After every ``unroll_steps`` optimizer steps,
    except during warm-up, a problem is ready for its parents; a parent steps once all its children
    are ready, and then waits for all of them again. ``on_inner_loop_start`` precedes the first step
    and each step that follows an upper update.

    With roll-back a snapshot is taken at the start of an inner loop; once a parent has stepped, the
    problems below it are restored from it and take their last optimizer step again, bottom to top.
    During warm-up a new snapshot replaces it after every ``unroll_steps`` optimizer steps, so that
    warm-up is never undone.

    Args:
        rhythms: The rhythm of each problem, by name; the default rhythm where left out.
        parents: The problems that wait for each problem, by name.
    """

    def __init__(self, rhythms: Mapping[str, Rhythm], parents: Mapping[str, Sequence[str]]) -> None:
        self._parents = {name: tuple(ups) for name, ups in parents.items()}
        self._children: dict[str, tuple[str, ...]] = {}
        for low, ups in self._parents.items():
            for up in ups:
                self._children[up] = (*self._children.get(up, ()), low)
        # A problem whose upper problem also waits for others may take further steps until then.
        self._waits_for_others = {
            low: any(len(self._children[up]) > 1 for up in ups)
            for low, ups in self._parents.items()
        }
        self._rhythms = dict(rhythms)
        self._progress: dict[str, Progress] = {}
        self._rolled_back = [
            name
            for name in _bottom_up(self._parents, self._children)
            if self._rhythms.get(name, PLAIN).roll_back
        ]

    def progress(self, name: str) -> Progress:
        """Return the state of a problem."""
        state = self._progress.get(name)
        if state is None:
            state = self._progress[name] = Progress()
        return state

    def carry_over(self, earlier: Schedule) -> None:
        """Take over the counts of another schedule; no problem is ready."""
        for name, state in earlier._progress.items():
            self._progress[name] = Progress(
                state.count, state.loop_open, every=state.every, since=state.since
            )

    def mark(self) -> Mark:
        """Return the state of every problem for :meth:`restore`; faster than :meth:`state_dict`."""
        return [
            (name, {**vars(state), "ready": set(state.ready)})
            for name, state in self._progress.items()
        ]

    def restore(self, mark: Mark) -> None:
        """Restore the state that :meth:`mark` returned."""
        self._progress = {
            name: Progress(**{**values, "ready": set(values["ready"])}) for name, values in mark
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of every problem, to be saved."""
        return {
            name: {**vars(state), "ready": sorted(state.ready)}
            for name, state in self._progress.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._progress = {
            name: Progress(**{**values, "ready": set(values["ready"])})
            for name, values in state.items()
        }

    def is_between_loops(self) -> bool:
        """Return whether no lower problem is inside a loop and no upper problem is still waiting.

        Nothing recorded until now will then be read again: the next upper update of each problem
        comes after a whole inner loop.
        """
        below = [name for name, ups in self._parents.items() if ups]
        return not any(
            state.ready or (name in below and (state.loop_open or state.redo_due))
            for name, state in self._progress.items()
        )

    def record(self, name: str, updates: int) -> None:
        """From now on record ``updates`` optimizer steps of a problem before each upper update."""
        self._rhythms[name] = replace(self._rhythms.get(name, PLAIN), recorded_updates=updates)

    def upper_update_every(self, name: str, loops: int) -> None:
        """Set the number of a problem's inner loops per upper update, from the current loop on.

        Raises:
            ValueError: For a number below 1.
        """
        if isinstance(loops, bool) or not isinstance(loops, int) or loops < 1:
            raise ValueError(
                f"Problem {name!r} was given an upper update every {loops!r} loops; give 1 or more."
            )
        state, rhythm = self.progress(name), self._rhythms.get(name, PLAIN)
        state.every, state.since = loops, state.count - state.count % rhythm.loop

    def advance(self, leaf: str) -> list[Instruction]:
        """Return the instructions that follow from one step of ``leaf``, in order."""
        instructions: list[Instruction] = []
        fired: list[str] = []
        self._fire(leaf, instructions, fired)
        self._redo(fired, instructions)
        return instructions

    def preview(self, leaves: Sequence[str], steps: int) -> str:
        """Return the instructions of the first steps as text, without changing the schedule."""
        fresh = Schedule(self._rhythms, self._parents)
        lines = []
        for number in range(1, steps + 1):
            order: list[tuple[str, list[str]]] = []
            for instruction in (i for leaf in leaves for i in fresh.advance(leaf)):
                if not order or order[-1][0] != instruction.problem:
                    order.append((instruction.problem, []))
                order[-1][1].append(str(instruction))
            for position, (name, actions) in enumerate(order):
                prefix = f"{number}" if position == 0 else " " * len(str(number))
                lines.append(f"{prefix} {name}: {', '.join(actions)}")
        return "\n".join(lines)

    def _fire(self, name: str, out: list[Instruction], fired: list[str]) -> None:
        state = self.progress(name)
        rhythm = self._rhythms.get(name, PLAIN)
        parents = self._parents.get(name, ())
        if state.redo_due:
            out.append(Instruction(name, Action.KEEP, state.count))
            state.redo_due = False
        if not state.loop_open:
            out.append(Instruction(name, Action.LOOP_START, state.count))
            state.loop_open = True
        roll_back = rhythm.roll_back and bool(parents)
        if roll_back and not state.snapshot_taken:
            out.append(Instruction(name, Action.SNAPSHOT, state.count))
            state.snapshot_taken = True
        state.count += 1
        out.append(self._step(name, state, rhythm, bool(parents)))
        state.ready.clear()
        fired.append(name)
        if state.count % rhythm.loop == 0:
            state.snapshot_taken = False
        if rhythm.is_upper_update(state.count, state.every, state.since):
            state.redo_due = roll_back
            self._upper_update(name, parents, out, fired)
            state.loop_open = False
        elif state.every > 1 and state.count % rhythm.loop == 0:
            state.loop_open = False

    def _upper_update(
        self, name: str, parents: Sequence[str], out: list[Instruction], fired: list[str]
    ) -> None:
        for parent in parents:
            ready = self.progress(parent).ready
            ready.add(name)
            if ready.issuperset(self._children[parent]):
                self._fire(parent, out, fired)

    def _step(self, name: str, state: Progress, rhythm: Rhythm, has_parents: bool) -> Instruction:
        count, accumulation = state.count, rhythm.accumulation
        window_end = -(-count // accumulation) * accumulation
        loop_end = -(-count // rhythm.loop) * rhythm.loop
        is_upper_update = rhythm.is_upper_update(loop_end, state.every, state.since)
        record = has_parents and (
            self._waits_for_others.get(name, False)
            or (is_upper_update and loop_end - window_end < rhythm.recorded_updates * accumulation)
        )
        undone = rhythm.roll_back and has_parents and is_upper_update
        first, last = count % accumulation == 1 % accumulation, window_end == count
        return Instruction(name, Action.STEP, count, first, last, record, not undone)

    def _redo(self, fired: Sequence[str], out: list[Instruction]) -> None:
        """Roll back the problems below those that stepped as parents, bottom to top."""
        for name in self._rolled_back:
            state = self.progress(name)
            if state.redo_due and any(up in fired for up in self._parents.get(name, ())):
                state.redo_due = False
                out.append(Instruction(name, Action.REDO, state.count))


def _bottom_up(
    parents: Mapping[str, Sequence[str]], children: Mapping[str, Sequence[str]]
) -> list[str]:
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            for child in children.get(name, ()):
                place(child)
            order.append(name)

    for name in parents:
        place(name)
    return order
