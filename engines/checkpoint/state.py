"""The state of a running program as plain data: save, compare and load it.

::

    {"run": counters, "graph": upper problems and paths, "problems": {name: …},
     "schedule": …, "snapshots": {name: …}, "hooks": [{"class": …, "state": …}, …],
     "env": …, "streams": …, "log": …}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import CheckpointError, Problem
from metaweight.problems.persistence.names import Names
from metaweight.problems.persistence.problem_state import (
    load_problem,
    load_step_data,
    problem_to_plain,
    require_same_form,
    require_same_lengths,
    saved_by,
)
from metaweight.problems.state.buffers import Snapshot
from metaweight.problems.state.plain_data import from_plain, to_plain
from metaweight.problems.state.random_streams import RandomState
from torch import Tensor

from ..hooks.base import Hook
from .process_state import gather_state, state_of_process
from .shards import without_shards
from .snapshots import snapshot_from_dict, snapshot_to_dict

if TYPE_CHECKING:
    from ..engine import Engine

LOGGERS = "The position of the loggers"
# Errors raised by reading plain data of an unexpected structure.
MISFITS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)


def engine_to_plain(engine: Engine) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state of a program between two steps, and its sharded tensors by name. Both share
    memory with the program.

    Raises:
        CheckpointError: Inside a step, or for state that is not plain data.
    """
    _require_between_steps(engine)
    state: dict[str, Any] = {}
    shards: dict[str, Tensor] = {}
    failure: CheckpointError | None = None
    try:
        frozen = engine.checkpoint_hook.frozen.unchanged(engine)
        state, shards = without_shards(_take(engine, copy=False, frozen=frozen))
    except CheckpointError as error:
        failure = error
    # No process may wait for one that has failed.
    failures = engine.processes.gather(None if failure is None else str(failure))
    if any(failures):
        raise CheckpointError(next(filter(None, failures))) from failure
    return gather_state(engine.processes, state), shards


def _require_between_steps(engine: Engine) -> None:
    if engine.run_state.inside_step:
        raise CheckpointError(
            "A checkpoint was asked for inside a step, or after one that ended with an exception, "
            "where the state is incomplete; save in iteration_end, in a validation, or when run() "
            "has returned."
        )
    if engine.holds_batches:
        raise CheckpointError(
            "A checkpoint was asked for after an error in captured steps, for which batches had "
            "been drawn that no checkpoint holds; let run() take them first, or load an earlier "
            "checkpoint."
        )


def _take(engine: Engine, *, copy: bool, frozen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    names = Names(engine.problems)
    loops = not engine.schedule.is_between_loops()
    problems = {
        p.name: problem_to_plain(p, names, loop_open=loops, copy=copy, frozen=frozen.get(p.name))
        for p in engine.problems
    }
    return {
        "run": {
            **engine.run_state.state_dict(),
            "global_step": engine.global_step,
            "roll_back": engine.config.roll_back,
        },
        "graph": _graph(engine),
        "problems": problems,
        "schedule": to_plain(engine.schedule.state_dict(), "The schedule"),
        "snapshots": {
            name: to_plain(
                snapshot_to_dict(engine, name, snapshot), f"The snapshot of {name!r}", copy=copy
            )
            for name, snapshot in engine.snapshots.items()
            if loops
        },
        "hooks": [
            {
                "class": type(hook).__name__,
                "optional": hook.optional,
                "state": _plain_state_of(hook, f"Hook {type(hook).__name__}", copy=copy),
            }
            for hook in saved_hooks(engine)
        ],
        "env": _plain_state_of(engine.env, "The environment", copy=copy),
        "streams": to_plain(streams_to_dict(engine), "The random streams", copy=copy),
        "log": to_plain(saved_by(LOGGERS, engine.logger.position), LOGGERS),
    }


def engine_from_plain(engine: Engine, state: Mapping[str, Any], where: str) -> None:
    """Load a state; if that fails, the program is unchanged.

    Raises:
        CheckpointError: When the state does not fit this program.
    """
    try:
        _require_same_program(engine, state)
        state = state_of_process(engine, state)
    except MISFITS as error:
        raise _refused(where, error) from error
    # What a state leaves out is not loaded, and need not be copied.
    frozen = {name: saved.get("frozen", {}) for name, saved in state["problems"].items()}
    before = _take(engine, copy=True, frozen=frozen)
    with ExitStack() as undo:
        undo.callback(_restore, engine, before)
        for problem in engine.problems:
            if problem.step_state.source is not None:
                undo.callback(problem.source.undo())
            undo.callback(problem.step_state.replace_trajectory, problem.step_state.trajectory)
            undo.callback(problem.step_state.replace_states, problem.step_state.method_states)
            undo.callback(problem.step_state.note_batch, problem.cur_batch)
        undo.callback(_set_snapshots, engine, dict(engine.snapshots))
        try:
            _load(engine, state)
        except MISFITS as error:
            raise _refused(where, error) from error
        undo.pop_all()


def streams_to_dict(engine: Engine) -> dict[str, Any]:
    """Return the states of the random streams of the host and of all devices in use."""
    found = {"host": RandomState(torch.device("cpu")).state_dict(), "devices": {}}
    for device in _devices(engine):
        state = torch.get_device_module(device).get_rng_state(device)
        found["devices"][str(device)] = state
    return found


def set_streams(state: Mapping[str, Any]) -> None:
    """Set the random streams, except those of missing devices."""
    for name, value in state["devices"].items():
        device = torch.device(name)
        if _is_there(device):
            torch.get_device_module(device).set_rng_state(value, device)
    RandomState.from_state_dict(torch.device("cpu"), state["host"]).restore()


def missing_devices(state: Mapping[str, Any]) -> list[str]:
    """Return the devices of a saved state that are missing here."""
    return [name for name in state["streams"]["devices"] if not _is_there(torch.device(name))]


def saved_hooks(engine: Engine) -> list[Hook]:
    """Return the hooks whose state is saved: all without ``only_shows``."""
    return [hook for hook in engine.hooks.hooks if not hook.only_shows]


def _graph(engine: Engine) -> dict[str, Any]:
    return {
        p.name: {
            "uppers": [up.name for up in p.parents],
            "paths": [[step.name for step in path] for path in p.paths],
        }
        for p in engine.problems
    }


def _require_same_program(engine: Engine, state: Mapping[str, Any]) -> None:
    graph, here = state["graph"], _graph(engine)
    if graph != here:
        raise CheckpointError(
            f"The checkpoint is of another program: its problems are {_sentence(graph)}, and here "
            f"they are {_sentence(here)}; build the program it was saved with."
        )
    for problem in engine.problems:
        require_same_form(problem, state["problems"][problem.name])
    hooks = [hook["class"] for hook in state["hooks"] if not hook["optional"]]
    present = [type(hook).__name__ for hook in saved_hooks(engine) if not hook.optional]
    if hooks != present:
        raise CheckpointError(
            f"The checkpoint is of another program: its hooks are {', '.join(hooks) or 'none'}, "
            f"and here {', '.join(present) or 'none'}; give the engine the same ones, in the same "
            "order."
        )
    rolls_back = state["run"]["roll_back"]
    if state["snapshots"] and rolls_back != engine.config.roll_back:
        raise CheckpointError(
            f"The checkpoint was saved inside a loop with EngineConfig(roll_back={rolls_back}); "
            "keep that setting."
        )


def _load(engine: Engine, state: Mapping[str, Any]) -> None:
    names = Names(engine.problems)
    problems = {p: state["problems"][p.name] for p in engine.problems}
    snapshots = {
        name: snapshot_from_dict(engine, name, from_plain(saved))
        for name, saved in state["snapshots"].items()
    }
    for problem, saved in problems.items():
        load_problem(problem, saved)
    _load_hooks(engine, state["hooks"])
    if state["env"] and engine.env is not None:
        _give_state(engine.env, from_plain(state["env"], engine.device))
    engine.schedule.load_state_dict(state["schedule"])
    engine.run_state.load_state_dict(state["run"])
    engine.global_step = state["run"]["global_step"]
    engine.hooks.state_loaded(engine)
    for problem, saved in problems.items():
        require_same_lengths(problem, saved)
        load_step_data(problem, saved, names)
    _set_snapshots(engine, snapshots)
    if state["streams"] is not None:
        set_streams(from_plain(state["streams"]))


def _restore(engine: Engine, before: Mapping[str, Any]) -> None:
    """Load an earlier state of the same engine, except loader positions and recorded steps."""
    for problem in engine.problems:
        load_problem(problem, before["problems"][problem.name])
        problem.step_state.trajectory.watch()
    _restore_gradients(engine.problems, before)
    _load_hooks(engine, before["hooks"])
    if before["env"] and engine.env is not None:
        _give_state(engine.env, from_plain(before["env"], engine.device))
    engine.schedule.load_state_dict(before["schedule"])
    engine.run_state.load_state_dict(before["run"])
    engine.global_step = before["run"]["global_step"]
    set_streams(from_plain(before["streams"]))


def _load_hooks(engine: Engine, saved: Sequence[Mapping[str, Any]]) -> None:
    """Load the state of every hook; an optional hook without a saved state is unchanged."""
    left = list(saved)
    for hook in saved_hooks(engine):
        found = next((s for s in left if s["class"] == type(hook).__name__), None)
        if found is not None:
            left.remove(found)
            hook.load_state_dict(from_plain(found["state"], engine.device))


def _restore_gradients(problems: list[Problem], before: Mapping[str, Any]) -> None:
    names = Names(problems)
    for parameter in names.parameters.values():
        parameter.grad = None
    for problem in problems:
        for name, gradient in from_plain(before["problems"][problem.name]["gradients"]).items():
            parameter = names.parameters[name]
            parameter.grad = gradient.to(parameter.device)


def _set_snapshots(engine: Engine, snapshots: dict[str, Snapshot]) -> None:
    engine.snapshots.clear()
    engine.snapshots.update(snapshots)


def _plain_state_of(thing: Any, what: str, *, copy: bool) -> Any:
    take: Callable[[], Any] = getattr(thing, "state_dict", dict)
    return to_plain(saved_by(what, take), what, copy=copy)


def _give_state(thing: Any, state: Mapping[str, Any]) -> None:
    thing.load_state_dict(state)


def _devices(engine: Engine) -> list[torch.device]:
    """Return all devices of the types in use, except the CPU."""
    kinds = {d.type for d in (engine.device, *(p.device for p in engine.problems))} - {"cpu"}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        kinds.add("cuda")
    return [
        torch.device(kind, index)
        for kind in sorted(kinds)
        for index in range(torch.get_device_module(kind).device_count())
    ]


def _is_there(device: torch.device) -> bool:
    try:
        count: int = torch.get_device_module(device).device_count()
    except (RuntimeError, AttributeError):
        return False
    return (device.index or 0) < count


def _refused(where: str, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return CheckpointError(f"{where}: {error}")
    return CheckpointError(
        f"{where} does not hold what this program needs ({type(error).__name__}: {error}); "
        "nothing was changed. Build the program it was saved with."
    )


def _sentence(graph: Mapping[str, Any]) -> str:
    pieces = []
    for name, place in graph.items():
        above = ", ".join(place["uppers"])
        pieces.append(f"{name} below {above}" if above else str(name))
    return "; ".join(pieces)
