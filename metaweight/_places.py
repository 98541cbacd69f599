"""Positions of samples in the data, by which tables with a row for each sample are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaweight.problems import DataError

from ._labels import on_host, read_values


def read_places(who: str, given: Any, number: int, *, size: int | None, table: str) -> Tensor:
    """Return positions of samples as int64, where they are.

    Args:
        who: What is read by them, for an error.
        given: (B,) integers in [0, number) of any type.
        number: Rows of the table.
        size: B, where it is known.
        table: What the number of rows was given as, for an error.

    Raises:
        DataError: For anything else; the range is checked on the host only.
    """
    if given is None:
        raise DataError(
            f"{who} looks something up for every sample, but the batch has no positions; give "
            "batches (inputs, labels, indices), for instance with TensorLoader(..., "
            "with_indices=True), or mappings with 'indices'."
        )
    places = read_values(given, "Sample indices", DataError)
    exact = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    if places.ndim != 1 or not exact or size not in (None, len(places)):
        raise DataError(
            f"{who} received indices of shape {tuple(places.shape)} and type {places.dtype} "
            f"for {'a batch' if size is None else f'{size} samples'}; give one integer "
            "position for each sample."
        )
    # As an index unsigned bytes would be a mask, and -1 the last row.
    places = places.long()
    if on_host(places) and len(places):
        low, high = int(places.min()), int(places.max())
        if low < 0 or high >= number:
            raise DataError(
                f"{who}({table}) received indices from {low} to {high}; give positions counted "
                "from 0 in the data that it was made for, with a row for each of its samples."
            )
    return places
