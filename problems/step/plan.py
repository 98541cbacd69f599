"""The plan of a problem's steps: what cannot change during a run, decided once.

What decides is the graph, the settings, the classes of problems and methods, and the parts of
networks. A change of these lets steps be planned again (:mod:`metaweight.problems.base.changes`);
what may change without notice, such as ``requires_grad`` and hooks on parameters, is looked at in
every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..base.changes import changes, note_change, watch
from ..base.graph_neighbours import graph_neighbours
from ..base.reduction import Reduction
from ..hypergradients.base import Hypergradient
from ..partial_hypergradient import may_be_partial
from ..problem import Problem
from ..state.buffers import BufferSlot, buffer_slots
from ..state.surroundings import Surroundings
from ..unrolling.rules import RULES


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
        start: The lower problem that the upper loss is differentiated by.
        is_measured: Whether the method measures the upper loss instead of taking its gradient.
        spends: Whether the first method reads the vector once and no other path starts with it.
    """

    names: tuple[str, ...]
    label: str
    edges: tuple[Edge, ...]
    start: Problem
    is_measured: bool
    spends: bool


@dataclass(frozen=True)
class StepPlan:
    """What all steps of a problem have in common.

    Attributes:
        changes: The number of changes at which it was made.
        parameters: All parameters of the problem's network.
        is_scaled: Whether the loss is scaled, or divided by a number of micro-batches.
        has_buffers: Whether its network has buffers, which a refused step restores.
        others: The buffers of other problems' networks, which a step leaves as they are.
        surroundings: What its loss may read and write, in all networks.
        around: The parameters that a graph of its loss may contain: its own, of problems below and
            of those above.
        buffers_around: The buffers of the same problems.
        through: Edges to the problems that hypergradients go through, each problem once.
        repeated: Those of them whose method may repeat steps of the lower problem.
        paths: The hypergradient paths.
        starts: The problems that the upper loss is differentiated by.
        measured: The paths for which it is measured instead.
        is_differentiated: Whether its gradient is taken: for a path, or without one.
        may_be_partial: Whether hypergradients may go through a part of what this problem trains.
        frozen_in_part: Whether that holds for the first problem of a path.
        writes_gradients: Whether something may write to gradients in place before they are dropped,
            beside the steps of torch's optimizers and their hooks.
        keeps_states: Whether a method below keeps a state.
        is_alone: Whether one process trains the program.
    """

    changes: int
    parameters: tuple[Tensor, ...]
    is_scaled: bool
    has_buffers: bool
    others: list[BufferSlot]
    surroundings: Surroundings
    around: tuple[Tensor, ...]
    buffers_around: list[BufferSlot]
    through: tuple[Edge, ...]
    repeated: tuple[Edge, ...]
    paths: tuple[PathPlan, ...]
    starts: tuple[Problem, ...]
    measured: tuple[PathPlan, ...]
    is_differentiated: bool
    may_be_partial: bool
    frozen_in_part: bool
    writes_gradients: bool
    keeps_states: bool
    is_alone: bool

    def only_type(self) -> torch.dtype | None:
        """Return the type of all parameters, if it is one and a pass computes in it."""
        types = {p.dtype for p in self.parameters}
        return types.pop() if len(types) == 1 and not self.may_be_partial else None


def plan_of(problem: Problem) -> StepPlan:
    """Return the plan of the problem's steps, made again after a change."""
    plan: StepPlan | None = problem.step_state.plan
    if plan is None or plan.changes != changes():
        return _planned(problem)
    if not plan.surroundings.are_there():
        # Torch tells of what is added to a network alone. Other plans hold what was deleted too.
        note_change()
        return _planned(problem)
    return plan


def _planned(problem: Problem) -> StepPlan:
    everyone = [problem, *problem.position.peers.values()]
    watch(one.module for one in everyone)
    below, above = graph_neighbours(problem)
    near = dict.fromkeys(one.module for one in (problem, *below, *above))
    begun = Counter(path[1] for path in problem.position.paths)
    paths = tuple(_path(path, alone=begun[path[1]] == 1) for path in problem.position.paths)
    edges = {edge.lower: edge for path in paths for edge in path.edges}
    measured = tuple(path for path in paths if path.is_measured)
    others = _buffers_of_others(problem)
    processes = type(problem.step_state.processes)
    plan = StepPlan(
        changes=changes(),
        parameters=tuple(problem.module.parameters()),
        is_scaled=problem.scaler is not None or problem.config.gradient_accumulation > 1,
        has_buffers=bool(buffer_slots(problem.module)),
        others=others,
        surroundings=Surroundings(
            [*buffer_slots(problem.module), *others], [one.module for one in everyone]
        ),
        around=tuple(p for n in near for p in n.parameters() if not _counts(p)),
        buffers_around=[slot for network in near for slot in buffer_slots(network)],
        through=tuple(edges.values()),
        repeated=tuple(edge for edge in edges.values() if _may_repeat_steps(edge.method)),
        paths=paths,
        starts=tuple(dict.fromkeys(path.start for path in paths if not path.is_measured)),
        measured=measured,
        is_differentiated=not (paths and len(measured) == len(paths)),
        may_be_partial=may_be_partial(problem),
        frozen_in_part=any(may_be_partial(path.start) for path in paths),
        writes_gradients=_writes_gradients(problem),
        keeps_states=any(edge.method.keeps_state for edge in edges.values()),
        is_alone=processes.mean is Reduction.mean
        and processes.average_gradients is Reduction.average_gradients,
    )
    problem.step_state.plan_as(plan)
    return plan


def _path(path: Sequence[Problem], *, alone: bool) -> PathPlan:
    edges = tuple(
        Edge(lower, above, lower.step_state.auditor or lower.hypergradient)
        for lower, above in pairwise(path[1:])
    )
    return PathPlan(
        names=tuple(problem.name for problem in path),
        label=" -> ".join(edge.lower.name for edge in edges),
        edges=edges,
        start=path[1],
        is_measured=path[1].hypergradient.zeroth_order,
        spends=alone and vars(type(edges[0].method)).get("spends_vector", False),
    )


def _may_repeat_steps(method: Hypergradient) -> bool:
    kind = type(method)
    return method.follows_optimizer or kind.repeats_steps is not Hypergradient.repeats_steps


def _buffers_of_others(problem: Problem) -> list[BufferSlot]:
    own = {(id(owner), name) for owner, name in buffer_slots(problem.module)}
    slots = [slot for p in problem.position.peers.values() for slot in buffer_slots(p.module)]
    return [slot for slot in slots if (id(slot[0]), slot[1]) not in own]


def _writes_gradients(problem: Problem) -> bool:
    """Return whether something is given the gradients that may write to them, beside the steps of
    torch's optimizers and their hooks."""
    methods = ("grad_callback", "custom_optimizer_step")
    kind, own = type(problem), vars(problem)
    return (
        any(getattr(kind, m) is not getattr(Problem, m) or m in own for m in methods)
        or type(problem.optimizer) not in RULES
        or bool(problem.step_state.changing_hooks)
        or problem.config.gradient_clipping > 0
    )


def _counts(parameter: Tensor) -> bool:
    return not (parameter.is_floating_point() or parameter.is_complex())
