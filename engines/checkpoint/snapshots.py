"""Roll-back snapshots as whole state, where each process has a part of it: taken and put back.

What a snapshot holds of the optimizer is what that holds between steps, in each process its part.
The problem itself knows how to make that whole, so it goes back to the snapshot for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem
from metaweight.problems.state.buffers import Snapshot

if TYPE_CHECKING:
    from ..engine import Engine


def snapshot_to_dict(engine: Engine, name: str, snapshot: Snapshot) -> dict[str, Any]:
    """Return the whole state of the snapshot of a problem; all processes call this."""
    processes = engine.processes
    if processes.world == 1:
        return snapshot.state_dict()
    problem = _named(engine, name)
    present = _snapshot_of(problem)
    try:
        snapshot.restore(problem.optimizer, problem.scaler)
        with processes.whole_optimizer(problem):
            return _snapshot_of(problem).state_dict()
    finally:
        present.restore(problem.optimizer, problem.scaler)


def snapshot_from_dict(engine: Engine, name: str, state: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot of a problem from its whole state; the problem is there afterwards.

    Raises:
        CheckpointError: When it is of other tensors.
    """
    problem = _named(engine, name)
    whole = _snapshot_of(problem)
    whole.load_state_dict(state)
    if engine.processes.world == 1:
        return whole
    whole.restore(problem.optimizer, problem.scaler)
    engine.processes.own_optimizer(problem)
    return _snapshot_of(problem)


def _named(engine: Engine, name: str) -> Problem:
    return next(p for p in engine.problems if p.name == name)


def _snapshot_of(problem: Problem) -> Snapshot:
    return Snapshot(problem.module, problem.optimizer, problem.scaler)
