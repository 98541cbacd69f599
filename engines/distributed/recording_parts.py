"""What is recorded of earlier steps, shared out like the parameters it is about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metaweight.problems import Problem
from metaweight.problems.recording.trajectory import RecordedUpdate
from torch import Tensor

from .shard_layout import ShardLayout

Layouts = Mapping[Tensor, ShardLayout]


def part_recordings(layouts: Layouts, problems: Iterable[Problem]) -> None:
    """Keep this process's part of parameters, gradients and states that whole steps recorded.

    The step being recorded stays as it is.
    """
    for problem in problems:
        for update in problem.step_state.trajectory.updates:
            if update.in_parts:
                continue
            for layout, holder, key in _tensors(layouts, update):
                if layout.is_whole(holder[key]):
                    holder[key] = layout.part(holder[key])
            update.in_parts = True


def recorded_parts(
    layouts: Layouts, problems: Iterable[Problem]
) -> list[tuple[ShardLayout, dict[Any, Any], Any]]:
    """Return where parts are recorded, to be made whole: layout, mapping and key."""
    found: list[tuple[ShardLayout, dict[Any, Any], Any]] = []
    for problem in problems:
        for update in problem.step_state.trajectory.updates:
            update.in_parts = False
            found += [at for at in _tensors(layouts, update) if at[0].is_part(at[1][at[2]])]
    return found


def _tensors(
    layouts: Layouts, update: RecordedUpdate
) -> Iterator[tuple[ShardLayout, dict[Any, Any], Any]]:
    holders: list[dict[Tensor, Any]] = [update.start]
    if update.moment is not None:
        holders.append(update.moment.gradients)
        for parameter, state in update.moment.states.items():
            if parameter in layouts:
                yield from ((layouts[parameter], state, key) for key in state)
    for holder in holders:
        yield from ((layouts[p], holder, p) for p in holder if p in layouts)
