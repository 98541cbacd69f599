"""Random graphs: the schedule against a simulation by time stamps instead of flags."""

from __future__ import annotations

import random

from metaweight.engines import Action, Instruction, Rhythm, Schedule
from support.each import for_each
from support.schedule_simulation import Simulation


def random_program(seed: int) -> tuple[dict[str, Rhythm], dict[str, list[str]]]:
    """A random acyclic graph of two to six problems with random rhythms."""
    dice = random.Random(seed)
    names = [f"p{i}" for i in range(dice.randint(2, 6))]
    parents: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        above = names[i + 1 :]
        parents[name] = dice.sample(above, dice.randint(0, min(2, len(above))))
    roll_back = dice.random() < 0.5
    rhythms = {
        name: Rhythm(
            unroll_steps=dice.randint(1, 3),
            accumulation=dice.randint(1, 3),
            warmup=dice.choice([0, 0, 1, 4, 7]),
            roll_back=roll_back,
        )
        for name in names
    }
    return rhythms, parents


def program(seed: int) -> tuple[Schedule, Simulation, list[str]]:
    rhythms, parents = random_program(seed)
    simulation = Simulation(rhythms, parents)
    leaves = [n for n in parents if not simulation.children[n]]
    return Schedule(rhythms, parents), simulation, leaves


SEEDS = range(60)


@for_each(SEEDS)
def test_order_equals_the_simulation(seed: int) -> None:
    schedule, simulation, leaves = program(seed)
    for _ in range(40):
        for leaf in leaves:
            expected, redone = simulation.advance(leaf)
            actual = schedule.advance(leaf)
            ordinary = [i for i in actual if i.action is not Action.REDO]
            redos = actual[len(ordinary) :]
            assert [(i.problem, i.action.name, i.count) for i in ordinary] == expected
            assert {i.problem for i in redos} == redone
            assert len(redos) == len(redone)
            assert_bottom_up([i.problem for i in redos], simulation)


def assert_bottom_up(order: list[str], simulation: Simulation) -> None:
    for position, name in enumerate(order):
        for later in order[position + 1 :]:
            assert later not in below(name, simulation)


def below(name: str, simulation: Simulation) -> set[str]:
    lower = set(simulation.children[name])
    return lower.union(*(below(c, simulation) for c in lower))


@for_each(SEEDS)
def test_recorded_steps_are_exactly_those_of_windows_upper_problems_may_replay(seed: int) -> None:
    schedule, simulation, leaves = program(seed)
    steps: dict[str, list[Instruction]] = {name: [] for name in simulation.parents}
    for _ in range(40):
        for leaf in leaves:
            for instruction in schedule.advance(leaf):
                if instruction.action is Action.STEP:
                    steps[instruction.problem].append(instruction)
    for name, taken in steps.items():
        if any(len(simulation.children[up]) > 1 for up in simulation.parents[name]):
            assert all(i.record for i in taken)  # others may keep an upper problem waiting
            continue
        replayed: set[int] = set()
        window: list[int] = []
        for i in taken:
            window = [i.count] if i.first else [*window, i.count]
            if simulation.parents[name] and simulation.due(name, i.count):
                assert i.last
                replayed.update(window)
        complete = [i for i in taken if i.count <= max(replayed, default=0)]
        assert {i.count for i in complete if i.record} == replayed


@for_each(SEEDS)
def test_unsettled_steps_are_exactly_those_since_the_snapshot_of_a_loop_handed_over(
    seed: int,
) -> None:
    schedule, simulation, leaves = program(seed)
    since: dict[str, list[Instruction]] = {}
    handed: dict[str, bool] = dict.fromkeys(simulation.parents, False)
    for _ in range(60):
        for leaf in leaves:
            for instruction in schedule.advance(leaf):
                name = instruction.problem
                if instruction.action is Action.SNAPSHOT:
                    for step in since.get(name, []):
                        assert step.settled is not handed[name]
                    since[name], handed[name] = [], False
                elif instruction.action is Action.STEP:
                    since.setdefault(name, []).append(instruction)
                    handed[name] = simulation.due(name, instruction.count)
                    if not simulation.rolls(name):
                        assert instruction.settled
