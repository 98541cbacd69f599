"""The parts of a program's state that differ between processes: gather and distribute them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import CheckpointError
from metaweight.problems.data.loader_parts import length_of

from ..distributed.processes import Processes

if TYPE_CHECKING:
    from ..engine import Engine

# Fields of a problem's state that differ between processes.
OWN = ("gradients", "batch", "trajectory", "loaders")


def gather_state(processes: Processes, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the state of process 0 with the differing parts of the other processes."""
    if processes.world == 1:
        return plain
    own = {
        "streams": plain["streams"],
        "problems": {
            name: {key: saved[key] for key in OWN} for name, saved in plain["problems"].items()
        },
    }
    return {**plain, "other processes": processes.gather(own)[1:]}


def state_of_process(engine: Engine, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of this process from the gathered state.

    If the number of processes has changed, epochs restart from their first batch and random
    streams are not restored.

    Raises:
        CheckpointError: If the number of processes has changed inside a loop or an accumulation.
    """
    processes, others = engine.processes, state.get("other processes", [])
    merged = {key: value for key, value in state.items() if key != "other processes"}
    if len(others) + 1 != processes.world:
        return _regrouped(engine, merged, len(others) + 1)
    if processes.rank == 0:
        return merged
    own = others[processes.rank - 1]
    problems = {
        name: {**saved, **own["problems"][name]} for name, saved in merged["problems"].items()
    }
    return {**merged, "problems": problems, "streams": own["streams"]}


def _regrouped(engine: Engine, merged: dict[str, Any], saved_by: int) -> dict[str, Any]:
    world = engine.processes.world
    problems: dict[str, Any] = {}
    for problem in engine.problems:
        saved = merged["problems"].get(problem.name, {})
        if saved.get("trajectory") is not None or saved.get("gradients"):
            raise CheckpointError(
                f"The checkpoint was saved by {saved_by} processes inside a loop or accumulation "
                f"of problem {problem.name!r}, whose batches do not fit {world} processes; go on "
                f"with {saved_by}, or from a checkpoint between two loops."
            )
        loaders = [] if problem.step_state.source is None else problem.source.loaders
        begun = [
            {
                "epochs": position["epochs"],
                "length": length_of(loader),
                # Batches of all processes together are others now.
                "division": position.get("division", 0) + 1,
                "own": None,
                "start": None,
                "delivered": 0,
                "generators": {},
                "numbers": {},
            }
            for position, loader in zip(saved.get("loaders", []), loaders, strict=False)
        ]
        problems[problem.name] = {**saved, "loaders": begun}
    engine.logger.warning(
        f"The checkpoint was saved by {saved_by} processes and goes on in {world}: epochs restart "
        "from their first batch."
    )
    return {**merged, "problems": {**merged["problems"], **problems}, "streams": None}
