"""The record of earlier loops is dropped where it holds copies and nobody may read it again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from metaweight.problems.recording.recorded_steps import RecordedUpdate, Recording
from metaweight.problems.recording.trajectory import Trajectory
from support.reweighting import Declared, program
from support.small import Inner, problem

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Reweighting, Unroll


@pytest.mark.parametrize(
    ("derivative", "held"), [("one_sided", [0, 0, 0]), ("central_difference", [0, 1, 1])]
)
def test_copies_of_parameters_are_in_memory_once(derivative: str, held: list[int]) -> None:
    """Batches alone cost nothing, and serve until others take their place."""
    seen: list[int] = []

    class Watched(Declared):
        def training_step(self, batch: Any) -> Any:
            seen.append(len(self.step_state.trajectory.updates))
            return super().training_step(batch)

    engine = program(Watched, config=Config(type=Reweighting(derivative=derivative)))
    for _ in held:
        engine.train_step()
    assert seen == held


@pytest.mark.parametrize(("keep", "left"), [(True, 1), (False, 0)])
def test_a_problem_that_others_are_waited_for_with_keeps_them(keep: bool, left: int) -> None:
    trajectory = Trajectory(Recording(updates=2, optimizer=True))
    trajectory.updates.append(RecordedUpdate())
    trajectory.begin_loop(keep=keep)
    problem: Any = SimpleNamespace(count=1)  # Of which nothing else is recorded here.
    trajectory.open(problem)
    assert len(trajectory.updates) == left
    trajectory.complete()
    # A second step of the loop drops nothing.
    trajectory.open(problem)
    assert len(trajectory.updates) == left + 1


def test_an_upper_problem_of_two_finds_the_last_record_of_each() -> None:
    """Where both are ready in every step too, since the second might not be."""
    seen: dict[str, list[int]] = {"left": [], "right": []}

    class Lower(Inner):
        def training_step(self, batch: Any) -> Any:
            seen[self.name].append(len(self.step_state.trajectory.updates))
            return super().training_step(batch)

    class Both(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            return (self.left().square() + self.right().square()).sum()

    lowers = [problem(Lower, name, config=Config(type=Unroll())) for name in seen]
    outer = problem(Both, "outer", start=(0.5,))
    graph = {"u2l": {outer: lowers}, "l2u": {lower: [outer] for lower in lowers}}
    Engine([outer, *lowers], EngineConfig(train_iters=3), graph).run()
    # Each of three steps, and its replay.
    assert seen == {"left": [0, 1, 1, 1, 1, 1], "right": [0, 1, 1, 1, 1, 1]}
