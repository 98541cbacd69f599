"""The state of a problem as plain data: save, compare and load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..base.errors import CheckpointError
from ..data.loader_parts import is_stateful, length_of
from ..problem import Problem
from ..recording.method_states import MethodStates
from ..state.plain_data import from_plain, to_plain
from .frozen import require_same_frozen, with_frozen, without_frozen
from .names import Names
from .trajectory_state import trajectory_from_plain, trajectory_to_plain

T = TypeVar("T")


def problem_to_plain(
    problem: Problem,
    names: Names,
    *,
    loop_open: bool,
    copy: bool = False,
    frozen: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the state that ``problem`` needs to resume.

    Args:
        problem: The problem.
        names: Names of all parameters and buffers of its program.
        loop_open: Whether a loop is open, so that recorded steps may still be read.
        copy: Copy tensors, so that the result shares no memory with the problem.
        frozen: Names of tensors of its module to leave out, with their fingerprints.

    Raises:
        CheckpointError: For state that is not plain data.
    """
    frozen = {} if frozen is None else frozen
    place = f"The state of problem {problem.name!r}"
    gradients = {t: t.grad for t in _tensors(problem) if t.grad is not None}
    source = problem.step_state.source
    return {
        "form": form_of(problem),
        "loop": loop_settings_of(problem) if loop_open else None,
        "state": to_plain(
            without_frozen(saved_by(place, problem.state_dict), frozen), place, copy=copy
        ),
        "frozen": dict(frozen),
        "requires_grad": {n: p.requires_grad for n, p in problem.module.named_parameters()},
        "modes": problem.step_state.modes.state_dict(problem.module),
        "count": problem.count,
        "global_step": problem.step_state.global_step,
        "skipped": problem.step_state.skipped,
        "has_moved": problem.step_state.trajectory.has_moved,
        "gradients": to_plain(names.keyed(gradients), place, copy=copy),
        "batch": _batch_to_plain(problem, copy),
        "method": to_plain(
            problem.step_state.method_states.state_dict(),
            f"The state of {type(problem.hypergradient).__name__} of problem {problem.name!r}",
            copy=copy,
        ),
        "trajectory": (
            trajectory_to_plain(
                problem.step_state.trajectory,
                names,
                f"A recorded step of problem {problem.name!r}",
                copy=copy,
            )
            if loop_open
            else None
        ),
        "loaders": []
        if source is None
        else [
            to_plain(saved_by(reading.place, reading.position), reading.place, copy=copy)
            for reading in source.readings
        ],
    }


def saved_by(what: str, take: Callable[[], T]) -> T:
    """Return the state that ``take`` gives, which may be code of users and other packages.

    Raises:
        CheckpointError: When that raises an error, whatever it is.
    """
    try:
        return take()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} could not be saved: {type(error).__name__}: {error}. Correct the state_dict() "
            "that raised this, or use an object without one."
        ) from error


def form_of(problem: Problem) -> dict[str, Any]:
    """Return the properties that must be equal in a checkpoint and in the loading problem."""
    optimizer, source = problem.optimizer, problem.step_state.source
    return {
        "module": form_of_module(problem.module),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "groups": [
            [list(p.shape) for p in group["params"]]
            for group in (() if optimizer is None else optimizer.param_groups)
        ],
        "scheduler": None if problem.scheduler is None else type(problem.scheduler).__name__,
        "loss scaler": problem.scaler is not None,
        "loaders": [is_stateful(loader) for loader in (() if source is None else source.loaders)],
    }


def form_of_module(module: nn.Module) -> dict[str, str]:
    """Return shape and type of each tensor in the state of a module, by its name."""
    return {
        name: f"{tuple(value.shape)} {value.dtype}".replace("torch.", "")
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def loop_settings_of(problem: Problem) -> dict[str, Any]:
    """Return the settings that must not change while a loop is open."""
    config = problem.config
    return {
        "unroll_steps": config.unroll_steps,
        "gradient_accumulation": config.gradient_accumulation,
        "warmup_steps": config.warmup_steps,
        "type": type(problem.hypergradient).__name__,
    }


def require_same_form(problem: Problem, saved: Mapping[str, Any]) -> None:
    """Refuse the state of another problem.

    Raises:
        CheckpointError: Naming what differs.
    """
    found, form = saved["form"], form_of(problem)
    what = f"problem {problem.name!r}"
    _require_same_module(what, found["module"], form["module"])
    require_same_frozen(what, problem.module, saved.get("frozen", {}))
    for key in ("optimizer", "groups", "scheduler", "loss scaler"):
        if found[key] != form[key]:
            name = "parameter groups of the optimizer" if key == "groups" else key
            raise _other(f"the {name} of {what}", found[key], form[key])
    if found["loaders"] != form["loaders"]:
        raise CheckpointError(
            f"The checkpoint is of another program: {what} had {len(found['loaders'])} loaders, "
            f"{sum(found['loaders'])} of them with a state_dict, and here has "
            f"{len(form['loaders'])}, {sum(form['loaders'])} with one; give it the loaders it was "
            "saved with."
        )
    loop, here = saved["loop"], loop_settings_of(problem)
    if loop is not None and loop != here:
        raise _other(f"the settings of {what}, saved inside a loop,", loop, here)


def require_same_lengths(problem: Problem, saved: Mapping[str, Any]) -> None:
    """Refuse positions of loaders with another length.

    Raises:
        CheckpointError: Naming the problem.
    """
    source = problem.step_state.source
    for index, position in enumerate(saved["loaders"]):
        assert source is not None
        length = length_of(source.loaders[index])
        if position["own"] is None and position["length"] != length:
            raise _other(
                f"the number of batches of loader {index} of problem {problem.name!r}",
                position["length"],
                length,
            )


def load_problem(problem: Problem, saved: Mapping[str, Any]) -> None:
    """Load module, optimizer, scheduler, loss scaler, what is frozen, and counters."""
    state = from_plain(saved["state"])
    problem.load_state_dict(with_frozen(state, saved.get("frozen", {}), problem.module))
    for name, parameter in problem.module.named_parameters():
        parameter.requires_grad_(saved.get("requires_grad", {}).get(name, parameter.requires_grad))
    problem.step_state.modes.load_state_dict(problem.module, saved.get("modes"))
    problem.step_state.begin_step(saved["count"], saved["global_step"])
    if saved["skipped"]:
        problem.step_state.skip_update()
    else:
        problem.step_state.open_update()


def load_step_data(problem: Problem, saved: Mapping[str, Any], names: Names) -> None:
    """Load gradients, the present batch, recorded steps and loader positions."""
    device = problem.device
    for parameter in _tensors(problem):
        parameter.grad = None
    for name, gradient in from_plain(saved["gradients"]).items():
        parameter = names.parameters[name]
        parameter.grad = gradient.to(parameter.device)
    problem.step_state.note_batch(from_plain(saved["batch"], device))
    states = MethodStates.from_state_dict(from_plain(saved.get("method", {}), device))
    problem.step_state.replace_states(states)
    if any(each.count for each in (problem, *problem.position.lowers)):
        # Steps below that nobody has seen here belong to its next one.
        problem.step_state.end_first_step()
    if saved["trajectory"] is not None:
        trajectory = trajectory_from_plain(saved["trajectory"], names, device)
    else:
        has_moved = saved.get("has_moved", problem.count > 0)
        trajectory = problem.step_state.trajectory.standing(has_moved=has_moved)
    problem.step_state.replace_trajectory(trajectory)
    for index, position in enumerate(saved["loaders"]):
        problem.source.go_to(index, from_plain(position, device), device)


def _batch_to_plain(problem: Problem, copy: bool) -> Any:
    try:
        return to_plain(problem.cur_batch, "The present batch", copy=copy)
    except CheckpointError:
        # Few programs read another problem's present batch, so it is optional.
        return None


def _tensors(problem: Problem) -> dict[torch.Tensor, None]:
    groups = [] if problem.optimizer is None else problem.optimizer.param_groups
    owned = [p for group in groups for p in group["params"]]
    return dict.fromkeys([*problem.module.parameters(), *owned])


def _require_same_module(what: str, found: Mapping[str, str], here: Mapping[str, str]) -> None:
    missing = [name for name in found if name not in here]
    added = [name for name in here if name not in found]
    if missing or added:
        raise CheckpointError(
            f"The checkpoint is of another program: for the module of {what} it has "
            f"{', '.join(missing[:3]) or 'nothing'} that the module lacks, and lacks "
            f"{', '.join(added[:3]) or 'nothing'} that it has; build the module it was saved with."
        )
    for name, shape in found.items():
        if here[name] != shape:
            raise _other(f"{name!r} in the module of {what}", shape, here[name])


def _other(what: str, saved: Any, here: Any) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint is of another program: {what} was {saved} and is {here} here; build the "
        "program it was saved with."
    )
