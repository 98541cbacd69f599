"""Makes a program of problems: who is whose neighbour, where they live, who steps when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metaweight.problems import Problem
from metaweight.problems.base.graph_node import GraphPosition
from metaweight.problems.setup.ownership import require_own_parameters
from metaweight.problems.setup.preparation import check_hypergradients, prepare
from metaweight.problems.step.absent_hypergradients import expect_dependence

from .distributed.accelerate import require_unprepared
from .distributed.placement import choose_precision
from .distributed.processes import Processes
from .distributed.same_program import require_same_program
from .program.graph import Graph
from .program.instructions import Rhythm
from .program.schedule import Schedule

if TYPE_CHECKING:
    from .engine import Engine

Drive = Callable[[Problem, "int | None"], None]


def wire(problems: Sequence[Problem], graph: Graph[Problem]) -> None:
    """Tell every problem its neighbours, its paths, and all others by name."""
    for problem in problems:
        peers = {peer.name: peer for peer in problems if peer is not problem}
        position = GraphPosition(
            parents=graph.parents[problem.name],
            children=graph.children[problem.name],
            paths=graph.paths[problem.name],
            peers=peers,
        )
        problem.place_in(position)


def prepare_problems(engine: Engine, drive: Drive, end_epoch: Callable[[Problem], None]) -> None:
    """Put the problems of an engine in their place, build what they lack, and share their state.

    Args:
        engine: Their engine.
        drive: Called with a problem that is asked to step, and the global step.
        end_epoch: Called with a problem whose first loader has ended.
    """
    if engine.env is not None:
        engine.env.introduce(engine.problems)
        engine.env.configure_device(engine.device)
        engine.env.initialize()
    keeps_terms = any(hook.reads_hypergradients for hook in engine.hooks.hooks)
    precision = choose_precision(engine.config)
    for problem in engine.problems:
        state = problem.step_state.for_run(
            engine.processes,
            drive,
            keeps_hypergradient_terms=keeps_terms,
            changing_hooks=engine.hooks.changing(problem),
        )
        problem.join(state, logger=engine.logger, env=engine.env)
        engine.step_states[problem.name] = state
        problem.use_precision(precision)
        require_unprepared(problem, engine.config)
        prepare(problem, engine.device, end_epoch, channels_last=engine.config.channels_last)
        require_unprepared(problem, engine.config)
    require_same_program(engine.processes, engine.problems, engine.config)
    for problem in engine.problems:
        engine.processes.own_module(problem.name, problem.module)
    require_own_parameters(engine.problems)
    for problem in engine.problems:
        check_hypergradients(problem)
    expect_dependence(engine.problems)
    engine.processes.shard(engine.problems)


def share(processes: Processes, problem: Problem) -> None:
    """Give the problem's parameters and buffers the values they have in process 0."""
    processes.broadcast([*problem.module.parameters(), *problem.module.buffers()])


def make_schedule(
    problems: Sequence[Problem], graph: Graph[Problem], *, roll_back: bool
) -> Schedule:
    """Return the order in which the problems of a graph step."""
    rhythms = {
        problem.name: Rhythm(
            unroll_steps=problem.config.unroll_steps,
            accumulation=problem.config.gradient_accumulation,
            warmup=problem.config.warmup_steps,
            roll_back=roll_back,
            recorded_updates=problem.step_state.trajectory.recording.updates,
        )
        for problem in problems
    }
    parents = {name: [p.name for p in ups] for name, ups in graph.parents.items()}
    return Schedule(rhythms, parents)
