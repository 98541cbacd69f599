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
from dataclasses import replace
from typing import Any

from .instructions import PLAIN, Action, Instruction, Progress, Rhythm


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
        self._rhythms = dict(rhythms)
        self._nodes: dict[str, _Node] = {}
        for name in dict.fromkeys([*self._parents, *(u for ups in parents.values() for u in ups)]):
            self._nodes[name] = _Node(name, self._rhythms.get(name, PLAIN))
        for low, ups in self._parents.items():
            for up in ups:
                self._nodes[low].parents.append(self._nodes[up])
                self._nodes[up].children.append(low)
        for node in self._nodes.values():
            if any(len(up.children) > 1 for up in node.parents):
                node.wait_for_others()
        self._rolled_back = _bottom_up(self._nodes)

    def progress(self, name: str) -> Progress:
        """Return the state of a problem."""
        return self._node(name).progress

    def _node(self, name: str) -> _Node:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(name, self._rhythms.get(name, PLAIN))
        return node

    def carry_over(self, earlier: Schedule) -> None:
        """Take over the counts of another schedule; no problem is ready."""
        for name, node in earlier._nodes.items():
            state = node.progress
            self._node(name).progress = Progress(
                state.count, state.loop_open, every=state.every, since=state.since
            )

    def mark(self) -> Mark:
        """Return the state of every problem for :meth:`restore`; faster than :meth:`state_dict`."""
        return [(node, node.progress.copy()) for node in self._nodes.values()]

    def restore(self, mark: Mark) -> None:
        """Restore the state that :meth:`mark` returned."""
        for node, state in mark:
            node.progress = state.copy()

    def exchange(self, mark: Mark) -> Mark:
        """Go to the state of a mark, which is used up, and return the present one."""
        present = [(node, node.progress) for node, _ in mark]
        for node, state in mark:
            node.progress = state
        return present

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of every problem, to be saved."""
        return {
            name: {**vars(node.progress), "ready": sorted(node.progress.ready)}
            for name, node in self._nodes.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load what :meth:`state_dict` returned."""
        for node in self._nodes.values():
            node.progress = Progress()
        for name, values in state.items():
            self._node(name).progress = Progress(**{**values, "ready": set(values["ready"])})

    def is_between_loops(self) -> bool:
        """Return whether no lower problem is inside a loop and no upper problem is still waiting.

        Nothing recorded until now will then be read again: the next upper update of each problem
        comes after a whole inner loop.
        """
        return not any(
            node.progress.ready
            or (node.parents and (node.progress.loop_open or node.progress.redo_due))
            for node in self._nodes.values()
        )

    def record(self, name: str, updates: int) -> None:
        """From now on record ``updates`` optimizer steps of a problem before each upper update."""
        node = self._node(name)
        node.rhythm = self._rhythms[name] = replace(node.rhythm, recorded_updates=updates)

    def upper_update_every(self, name: str, loops: int) -> None:
        """Set the number of a problem's inner loops per upper update, from the current loop on.

        Raises:
            ValueError: For a number below 1.
        """
        if isinstance(loops, bool) or not isinstance(loops, int) or loops < 1:
            raise ValueError(
                f"Problem {name!r} was given an upper update every {loops!r} loops; give 1 or more."
            )
        node = self._node(name)
        state = node.progress
        state.every, state.since = loops, state.count - state.count % node.rhythm.loop

    def advance(self, leaf: str) -> list[Instruction]:
        """Return the instructions that follow from one step of ``leaf``, in order."""
        instructions: list[Instruction] = []
        fired: list[_Node] = []
        self._fire(self._node(leaf), instructions, fired)
        for node in self._rolled_back:
            if node.progress.redo_due and any(up in fired for up in node.parents):
                node.progress.redo_due = False
                instructions.append(Instruction(node.name, Action.REDO))
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

    def _fire(self, node: _Node, out: list[Instruction], fired: list[_Node]) -> None:
        name, state, rhythm, parents = node.name, node.progress, node.rhythm, node.parents
        if state.redo_due:
            out.append(Instruction(name, Action.KEEP))
            state.redo_due = False
        if not state.loop_open:
            out.append(node.loop_start)
            state.loop_open = True
        if rhythm.roll_back and parents and not state.snapshot_taken:
            out.append(Instruction(name, Action.SNAPSHOT))
            state.snapshot_taken = True
        state.count += 1
        left = -state.count % rhythm.loop
        is_due = rhythm.is_upper_update(state.count + left, state.every, state.since)
        out.append(node.step(left, is_due=is_due))
        state.ready.clear()
        fired.append(node)
        if left:
            return
        state.snapshot_taken = False
        if is_due:
            state.redo_due = rhythm.roll_back and bool(parents)
            for parent in parents:
                ready = parent.progress.ready
                ready.add(name)
                if ready.issuperset(parent.children):
                    self._fire(parent, out, fired)
        if is_due or state.every > 1:
            state.loop_open = False


class _Node:
    """A problem in the schedule.

    Args:
        name: Its name.
        rhythm: Its rhythm.

    Attributes:
        progress: Its state.
        parents: The problems that wait for it.
        children: The names of those it waits for.
        waits_for_others: Whether a parent waits for others too, until which it may step again.
        loop_start: The instruction to begin a loop.
    """

    def __init__(self, name: str, rhythm: Rhythm) -> None:
        self.name = name
        self.rhythm = rhythm
        self.progress = Progress()
        self.parents: list[_Node] = []
        self.children: list[str] = []
        self.waits_for_others = False
        self.loop_start = Instruction(name, Action.LOOP_START)

    def wait_for_others(self) -> None:
        """Note that a parent waits for others too, which may step before the next loop."""
        self.waits_for_others = True
        self.loop_start = self.loop_start._replace(record=True)

    def step(self, left: int, *, is_due: bool) -> Instruction:
        """Return the instruction of the step that the counter says.

        Args:
            left: Steps that are left in the loop.
            is_due: Whether upper problems become due at its end.
        """
        count, accumulation = self.progress.count, self.rhythm.accumulation
        micro_batches_left = -count % accumulation
        record = bool(self.parents) and (
            self.waits_for_others
            or (is_due and left - micro_batches_left < self.rhythm.recorded_updates * accumulation)
        )
        undone = is_due and self.rhythm.roll_back and bool(self.parents)
        first, last = count % accumulation == 1 % accumulation, not micro_batches_left
        return Instruction(self.name, Action.STEP, count, first, last, record, not undone)


Mark = list[tuple[_Node, Progress]]


def _bottom_up(nodes: Mapping[str, _Node]) -> list[_Node]:
    """Return the nodes that are rolled back, lower ones first."""
    order: list[_Node] = []

    def place(node: _Node) -> None:
        if node not in order:
            for child in node.children:
                place(nodes[child])
            order.append(node)

    for node in nodes.values():
        place(node)
    return [node for node in order if node.rhythm.roll_back]
