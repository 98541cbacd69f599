"""Problems below and above a problem, and which of their tensors change while it takes steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..problem import Problem


def problems_that_may_step(problem: Problem) -> Sequence[Problem]:
    """Return the problems that may step between a step of this one and the replay of that step.

    These are all problems below, and those above if there are several: a single upper problem has
    not stepped yet when it asks for the replay, while of several the nearer ones step first.
    """
    below, above = graph_neighbours(problem)
    return [*below, *(p for p in above if p not in below and len(above) > 1)]


def graph_neighbours(problem: Problem) -> tuple[list[Problem], list[Problem]]:
    """Return the problems below this one, and those above it."""
    below = _reach(problem, lambda p: p.children)
    return below, _reach(problem, lambda p: p.parents)


def versions_of(
    parameters: Iterable[Tensor],
    buffers: Iterable[tuple[nn.Module, str]],
    copied: Mapping[Tensor, Tensor],
) -> dict[Tensor, int]:
    """Return the versions of the tensors that a graph of a loss may contain.

    A version counts how often a tensor has been written to.

    Args:
        parameters: The parameters that it may contain.
        buffers: Where the buffers are that it may contain.
        copied: Parameters that are left out, since the graph contains their copies.
    """
    present = [owner._buffers[name] for owner, name in buffers if name in owner._buffers]
    # Integer buffers count batches: they are written to in every pass, and are in no graph.
    seen = [b for b in present if b is not None and (b.is_floating_point() or b.is_complex())]
    return {t: t._version for t in (*parameters, *seen) if t not in copied}


def _reach(problem: Problem, neighbours: Callable[[Problem], Sequence[Problem]]) -> list[Problem]:
    found: list[Problem] = []
    for near in neighbours(problem):
        for other in (near, *_reach(near, neighbours)):
            if other is not problem and other not in found:
                found.append(other)
    return found
