"""Snapshots of problems for roll-back."""

from __future__ import annotations

from ..problem import Problem
from ..state.buffers import Snapshot
from ..state.owned import owned


def snapshot_of(problem: Problem) -> Snapshot:
    """Return a copy of what is the problem's own; a roll-back leaves what other problems train."""
    own = owned(problem)
    return Snapshot(own.parameters, own.slots, problem.optimizer, problem.scaler)
