"""Buffers of a program's modules, which evaluations restore."""

from __future__ import annotations

from ..problem import Problem
from ..state.buffers import BufferSlot, buffer_slots


def buffers_of_others(problem: Problem) -> list[BufferSlot]:
    """Return the buffers of other problems' modules, which a step must not change."""
    others = [peer.module for peer in problem.position.peers.values()]
    return problem.step_state.other_buffer_slots(problem.module, others)


def buffers_of_all(problem: Problem) -> list[BufferSlot]:
    """Return the buffers of the problem's module and of all others."""
    return buffer_slots(problem.module) + buffers_of_others(problem)
