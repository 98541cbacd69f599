"""Save and load roll-back snapshots whose optimizer state is sharded over processes.

A snapshot holds this process's part of the optimizer state. Only a problem can gather the whole
state, so it is set to the snapshot for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem
from metaweight.problems.state.buffers import Snapshot
from metaweight.problems.step.snapshot import snapshot_of

if TYPE_CHECKING:
    from ..engine import Engine


def snapshot_to_dict(engine: Engine, name: str, snapshot: Snapshot) -> dict[str, Any]:
    """Return the whole state of a problem's snapshot; all processes call this."""
    processes = engine.processes
    if processes.world == 1:
        return snapshot.state_dict()
    problem = _named(engine, name)
    present = snapshot_of(problem)
    try:
        snapshot.restore(problem.optimizer, problem.scaler)
        with processes.whole_optimizer(problem):
            return snapshot_of(problem).state_dict()
    finally:
        present.restore(problem.optimizer, problem.scaler)


def snapshot_from_dict(engine: Engine, name: str, state: Mapping[str, Any]) -> Snapshot:
    """Return a problem's snapshot from its whole state; may set the problem to the snapshot.

    Raises:
        CheckpointError: When the tensors do not fit.
    """
    problem = _named(engine, name)
    whole = snapshot_of(problem)
    whole.load_state_dict(state)
    if engine.processes.world == 1:
        return whole
    whole.restore(problem.optimizer, problem.scaler)
    engine.processes.own_optimizer(problem)
    return snapshot_of(problem)


def _named(engine: Engine, name: str) -> Problem:
    return next(p for p in engine.problems if p.name == name)
