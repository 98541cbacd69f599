"""The recorded steps of a problem as plain data, and back.

Kept graphs are not saved; a hypergradient rebuilds missing graphs. Hooks on parameters are called
again, on the gradients they were called on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..kernels.gradient_hooks import call_hooks
from ..recording.recorded_steps import (
    BatchNumber,
    OptimizerMoment,
    RecordedStep,
    RecordedUpdate,
    Recording,
)
from ..recording.samples import Samples
from ..recording.trajectory import Trajectory
from ..state.plain_data import from_plain, to_plain
from ..state.random_streams import RandomState
from .names import Names


def trajectory_to_plain(
    trajectory: Trajectory, names: Names, where: str, *, copy: bool = False
) -> dict[str, Any]:
    """Return the contents of ``trajectory`` without graphs.

    Raises:
        CheckpointError: For batches that are not plain data.
    """
    trajectory.note_written()
    under_way = trajectory.under_way
    updates = [*trajectory.updates, *([] if under_way is None else [under_way])]
    found = {
        "recording": asdict(trajectory.recording),
        "updates": [_update_to_dict(update, names) for update in updates],
        "open": under_way is not None,
        "loop": [trajectory.taken, trajectory.skipped, trajectory.all_skipped],
        "has_moved": trajectory.has_moved,
    }
    plain: dict[str, Any] = to_plain(found, where, copy=copy)
    return plain


def trajectory_from_plain(
    plain: Mapping[str, Any], names: Names, device: torch.device
) -> Trajectory:
    """Return the trajectory saved by :func:`trajectory_to_plain`, on a device.

    Raises:
        CheckpointError: For batches of a class that the program lacks.
        LookupError: For names that the program lacks.
    """
    trajectory = Trajectory(Recording(**plain["recording"]))
    updates = [_update_from_dict(u, names, device) for u in from_plain(plain["updates"], device)]
    if plain["open"]:
        trajectory.under_way = updates.pop()
    trajectory.updates.extend(updates)
    trajectory.taken, trajectory.skipped, trajectory.all_skipped = plain["loop"]
    trajectory.has_moved = plain.get("has_moved", trajectory.taken > 0)
    return trajectory


def _update_to_dict(update: RecordedUpdate, names: Names) -> dict[str, Any]:
    return {
        "steps": [
            {
                "batch": step.batch,
                "random": step.random.state_dict(),
                **_samples_to_dict(step.samples),
                "number": None if step.number is None else list(step.number),
                "hooked": names.keyed({p: h.before for p, h in step.hooked.items()}),
            }
            for step in update.steps
        ],
        "start": names.keyed(update.start),
        "written": names.keyed(update.written),
        "buffers": [(names.name_of(slot), value) for slot, value in update.buffers],
        "moment": None if update.moment is None else _moment_to_dict(update.moment, names),
        "share": names.keyed(update.share),
        "begins_loop": update.begins_loop,
        "count": update.count,
    }


def _update_from_dict(
    found: Mapping[str, Any], names: Names, device: torch.device
) -> RecordedUpdate:
    return RecordedUpdate(
        steps=[
            RecordedStep(
                step["batch"],
                RandomState.from_state_dict(device, step["random"]),
                _samples_from_dict(step, device),
                number=_number_from(step.get("number")),
                hooked={
                    p: call_hooks(p, gradient)
                    for p, gradient in _by_parameter(step.get("hooked", {}), names).items()
                },
            )
            for step in found["steps"]
        ],
        start=_by_parameter(found["start"], names),
        written=_by_parameter(found.get("written", {}), names),
        buffers=[(names.slots[name], value) for name, value in found["buffers"]],
        moment=None if found["moment"] is None else _moment_from_dict(found["moment"], names),
        share=_by_parameter(found.get("share", {}), names),
        begins_loop=found.get("begins_loop", False),
        count=found.get("count", 0),
    )


def _number_from(saved: list[int] | int | None) -> BatchNumber | None:
    if saved is None:
        return None
    # Formerly loaders that took each other's place were not told apart.
    return BatchNumber(0, saved) if isinstance(saved, int) else BatchNumber(*saved)


def _samples_to_dict(samples: Samples | None) -> dict[str, Any]:
    if samples is None:
        return {"losses": None}
    random = samples.random
    state = None if random is None else random.state_dict()
    return {"losses": samples.losses, "features": samples.features, "random of weights": state}


def _samples_from_dict(step: Mapping[str, Any], device: torch.device) -> Samples | None:
    if step["losses"] is None:
        return None
    state = step.get("random of weights")
    random = None if state is None else RandomState.from_state_dict(device, state)
    return Samples(step["losses"], step.get("features"), random)


def _moment_to_dict(moment: OptimizerMoment, names: Names) -> dict[str, Any]:
    # Algorithms group parameters by the identity of their settings, so sharing must be saved.
    shared = {id(settings): settings for settings in moment.settings.values()}
    numbers = {identity: number for number, identity in enumerate(shared)}
    return {
        "gradients": names.keyed(moment.gradients),
        "states": names.keyed(moment.states),
        "groups": [dict(settings) for settings in shared.values()],
        "group of": {n: numbers[id(s)] for n, s in names.keyed(moment.settings).items()},
        "values": moment.values,
    }


def _moment_from_dict(found: Mapping[str, Any], names: Names) -> OptimizerMoment:
    groups = found["groups"]
    settings = {name: groups[number] for name, number in found["group of"].items()}
    return OptimizerMoment(
        _by_parameter(found["gradients"], names),
        _by_parameter(found["states"], names),
        _by_parameter(settings, names),
        found["values"],
    )


def _by_parameter(values: Mapping[str, Any], names: Names) -> dict[Tensor, Any]:
    return {names.parameters[name]: value for name, value in values.items()}
