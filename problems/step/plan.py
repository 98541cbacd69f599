"""The plan of a problem's steps: what cannot change during a run, decided once.

What decides is the graph, the settings, the classes of problems and methods, and the parts of
networks. A change of these lets steps be planned again (:mod:`metaweight.problems.base.changes`);
what may change without notice, such as ``requires_grad`` and hooks on parameters, is looked at in
every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn

from ..base.changes import changes, note_change, watch
from ..base.reduction import Reduction
from ..hypergradients.base import Hypergradient
from ..partial_hypergradient import may_be_partial
from ..problem import Problem
from ..state.buffers import BufferSlot, buffer_slots
from ..state.surroundings import Surroundings


class Edge(NamedTuple):
    """An edge of a path, which a vector passes by a product.

    Attributes:
        lower: The problem that it goes through.
        above: The problem whose parameters it is a vector of.
        method: How it is formed.
    """

    lower: Problem
    above: Problem
    method: Hypergradient


@dataclass(frozen=True)
class PathPlan:
    """A hypergradient path.

    Attributes:
        names: The names of its problems, from the upper problem down and back up to it.
        label: Those of the lower problems, as text.
        edges: Its edges, from the first lower problem on.
        is_measured: Whether the method measures the upper loss instead of taking its gradient.
    """

    names: tuple[str, ...]
    label: str
    edges: tuple[Edge, ...]
    is_measured: bool

    @property
    def start(self) -> Problem:
        """The lower problem that the upper loss is differentiated by."""
        return self.edges[0].lower


@dataclass(frozen=True)
class StepPlan:
    """What all steps of a problem have in common.

    Attributes:
        changes: The number of changes at which it was made.
        module: The problem's network.
        optimizer: Its optimizer.
        is_autocast: Whether the loss is computed in half precision.
        has_buffers: Whether its network has buffers, which a refused step restores.
        others: The buffers of other problems' networks, which a step leaves as they are.
        surroundings: What its loss may read and write, in all networks.
        through: Edges to the problems that hypergradients go through, each problem once.
        paths: The hypergradient paths.
        is_measured: Whether the upper loss is measured, for some path.
        is_differentiated: Whether its gradient is taken: for a path, or without one.
        may_be_partial: The first problems of paths that may go through a part of the parameters.
        keeps_states: Whether a method below keeps a state.
        is_alone: Whether one process trains the program.
    """

    changes: int
    module: nn.Module
    optimizer: Any
    is_autocast: bool
    has_buffers: bool
    others: list[BufferSlot]
    surroundings: Surroundings
    through: tuple[Edge, ...]
    paths: tuple[PathPlan, ...]
    is_measured: bool
    is_differentiated: bool
    may_be_partial: bool
    keeps_states: bool
    is_alone: bool


def plan_of(problem: Problem) -> StepPlan:
    """Return the plan of the problem's steps, made again after a change."""
    plan: StepPlan | None = problem.step_state.plan
    if plan is None or plan.changes != changes():
        return _planned(problem)
    if plan.module is not problem.module or plan.optimizer is not problem.optimizer:
        # They may be set without a call; plans of other problems hold them too.
        note_change()
        return _planned(problem)
    return plan


def _planned(problem: Problem) -> StepPlan:
    everyone = [problem, *problem.position.peers.values()]
    watch(one.module for one in everyone)
    paths = tuple(map(_path, problem.position.paths))
    edges = {edge.lower: edge for path in paths for edge in path.edges}
    measured = [path.is_measured for path in paths]
    others = _buffers_of_others(problem)
    processes = type(problem.step_state.processes)
    plan = StepPlan(
        changes=changes(),
        module=problem.module,
        optimizer=problem.optimizer,
        is_autocast=problem.config.precision != "fp32",
        has_buffers=bool(buffer_slots(problem.module)),
        others=others,
        surroundings=Surroundings(
            [*buffer_slots(problem.module), *others], [one.module for one in everyone]
        ),
        through=tuple(edges.values()),
        paths=paths,
        is_measured=any(measured),
        is_differentiated=not (measured and all(measured)),
        may_be_partial=any(may_be_partial(path.start) for path in paths),
        keeps_states=any(edge.method.keeps_state for edge in edges.values()),
        is_alone=processes.mean is Reduction.mean
        and processes.average_gradients is Reduction.average_gradients,
    )
    problem.step_state.plan_as(plan)
    return plan


def _path(path: Sequence[Problem]) -> PathPlan:
    edges = tuple(
        Edge(lower, above, lower.step_state.auditor or lower.hypergradient)
        for lower, above in pairwise(path[1:])
    )
    return PathPlan(
        names=tuple(problem.name for problem in path),
        label=" -> ".join(edge.lower.name for edge in edges),
        edges=edges,
        is_measured=path[1].hypergradient.zeroth_order,
    )


def _buffers_of_others(problem: Problem) -> list[BufferSlot]:
    own = {(id(owner), name) for owner, name in buffer_slots(problem.module)}
    slots = [slot for p in problem.position.peers.values() for slot in buffer_slots(p.module)]
    return [slot for slot in slots if (id(slot[0]), slot[1]) not in own]
