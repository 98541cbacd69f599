"""The samples of a step: their indices, and those of all processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metaweight._batch import Part, part_of, shown_batch, split_batch
from metaweight._labels import read_values
from metaweight.engines.distributed.processes import Processes
from metaweight.problems import DataError, Problem

from .problems import WeightedClassifier


def places_of(who: str, problem: Problem, index: Part, number: int) -> Tensor:
    """Return the indices of the samples of a problem's batch, (B,), of an integer type.

    Args:
        who: Who reads it, for an error.
        problem: The problem.
        index: Key or place of the indices, or a function of the batch; ``None`` for a usual one.
        number: B.

    Raises:
        DataError: When it has none there.
    """
    batch = problem.cur_batch
    if index is not None:
        given = part_of(who, batch, index, "index")
    elif isinstance(problem, WeightedClassifier):
        # It knows what is not guessed: the place of its labels is none of indices.
        given = problem.parts_of(batch).indices
    else:
        given = split_batch(who, batch, labelled=False).indices
    if given is None:
        raise DataError(
            f"{who} received {shown_batch(batch)}, which does not say which samples it holds; give "
            "batches (inputs, labels, indices), by a loader's with_indices=True, a mapping with "
            "'index', or index=... of another part."
        )
    places = read_values(given, "Sample indices", DataError)
    integers = not places.is_floating_point() and places.dtype != torch.bool
    if places.shape != (number,) or not integers:
        raise DataError(
            f"{who} received indices of shape {tuple(places.shape)} and type {places.dtype} for "
            f"{number} samples; give one integer for each, or index=... of the part of a batch "
            "that holds them."
        )
    return places


def of_all_processes(
    processes: Processes, places: Tensor, values: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return indices and values of the samples of all processes, by rank.

    Where some have fewer, the last index of theirs is repeated, with values that are not numbers.
    """
    if processes.world == 1:
        return places, dict(values)
    missing = processes.largest(len(places)) - len(places)
    filled = torch.cat([places, places[-1:].expand(missing)])
    everywhere = {}
    for name, rows in values.items():
        absent = rows.new_full((missing, *rows.shape[1:]), torch.nan)
        everywhere[name] = processes.stacked(torch.cat([rows, absent])).flatten(0, 1)
    return processes.stacked(filled).flatten(0, 1), everywhere
