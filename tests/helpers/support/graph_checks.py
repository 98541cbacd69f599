"""Whether graphs are kept, in each of two processes that have not as much memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaweight.problems.recording import graph_memory

from .checks import check
from .shared_out import parameters, program


@check
def graphs_where_one_has_no_memory(rank: int, world: int, folder: Path) -> Any:
    """The last process has none left; with sizes in memory of all, and of some."""
    found, before = {}, graph_memory.free_memory
    for case, least in (("all", 10**9), ("some", 1)):
        graph_memory.free_memory = lambda device, n=least: n if rank == world - 1 else 10**9
        try:
            engine = program("unroll auto", rank, world)
            engine.run()
        finally:
            graph_memory.free_memory = before
        keeps = bool(engine.low.step_state.trajectory.keeps_graphs)
        found[case] = {**parameters(engine), "keeps": keeps}
    return found
