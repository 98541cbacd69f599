"""Values of samples by index: the last one, their sum, and how many there were."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaweight._labels import on_host
from metaweight.problems import CheckpointError, DataError

MAPPED_ABOVE = 1_000_000
"""Number of samples above which tables on the CPU are files mapped into memory."""


class SampleTable:
    """Columns of N rows, which begin with the first values that they are given.

    Every column has one row more, which takes what is not to be recorded: where that is so is known
    on the device alone.

    Args:
        who: Whose table it is, for an error.
        size: N.
        folder: Where to make files; the system's folder of temporary ones if ``None``.
    """

    def __init__(self, who: str, size: int, folder: Path | None) -> None:
        self._who = who
        self._size = size
        self._folder = folder
        self._last: dict[str, Tensor] = {}
        self._total: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        self._span: Tensor | None = None

    @torch.no_grad()
    def put(self, places: Tensor, values: Mapping[str, Tensor]) -> None:
        """Record values, one row for each place, (B,), int64.

        A row with a value that is not finite is left out. Of a place that is there several times,
        all rows count, and the last one is its last. Nothing waits for a device.

        Raises:
            DataError: For a place outside [0, N): on the CPU at once, elsewhere when the table is
                read. For other columns than before, whose means would be of other numbers.
        """
        if self._last and values.keys() != self._last.keys():
            raise DataError(
                f"{self._who} has recorded {', '.join(self._last)} of samples, and received "
                f"{', '.join(values)} now; let all steps have the same, for instance by "
                "note_logits in each of them or in none."
            )
        span = torch.stack(places.aminmax())
        self._span = span if self._span is None else _widest(self._span, span)
        if on_host(places):
            self._require_inside()
        recorded = (places >= 0) & (places < self._size)
        for rows in values.values():
            recorded &= rows.isfinite().reshape(len(places), -1).all(1)
        # Rows of one place come together, in the order given, so that the last can be told.
        ordered, order = torch.where(recorded, places, self._size).sort(stable=True)
        last = torch.ones_like(recorded)
        last[:-1] = ordered[1:] != ordered[:-1]
        ends = torch.where(last, ordered, self._size)
        for name, rows in values.items():
            if name not in self._last:
                self._last[name] = self._column(rows, torch.nan)
                self._total[name] = self._column(rows, 0.0)
            found = rows.to(self._last[name].dtype).index_select(0, order)
            self._last[name].index_copy_(0, ends, found)
            _add(self._total[name], ordered, found)
        if self._counts is None:
            self._counts = self._column(places, 0)
        _add(self._counts, ordered, torch.ones_like(ordered))

    @property
    def counts(self) -> Tensor:
        """How often each sample was recorded, (N,), int64."""
        self._require_inside()
        if self._counts is None:
            return torch.zeros(self._size, dtype=torch.int64, device="cpu")
        return self._counts[: self._size]

    def last(self, name: str) -> Tensor | None:
        """Return the last values of a column, (N, …), NaN where there are none yet."""
        self._require_inside()
        return self._last[name][: self._size] if name in self._last else None

    def mean(self, name: str) -> Tensor | None:
        """Return the means of a column, (N, …), NaN where there are none yet."""
        counts = self.counts
        if name not in self._total:
            return None
        total = self._total[name][: self._size]
        return total / counts.to(total.dtype).reshape(-1, *[1] * (total.ndim - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the table, sharing its memory."""
        for column, empty in ((self._last, torch.nan), (self._total, 0.0)):
            for rows in column.values():
                rows[-1] = empty
        if self._counts is not None:
            self._counts[-1] = 0
        return {
            "size": self._size,
            "last": dict(self._last),
            "total": dict(self._total),
            "counts": self._counts,
            "span": self._span,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            CheckpointError: For the table of another number of samples.
        """
        if state["size"] != self._size:
            raise CheckpointError(
                f"{self._who} has {self._size} samples, and the saved one {state['size']}; give "
                "the number that the run was begun with."
            )
        self._last = {name: self._copied(rows) for name, rows in state["last"].items()}
        self._total = {name: self._copied(rows) for name, rows in state["total"].items()}
        counts, span = state["counts"], state["span"]
        self._counts = None if counts is None else self._copied(counts)
        self._span = None if span is None else span.clone()

    def _copied(self, rows: Tensor) -> Tensor:
        return self._column(rows, 0).copy_(rows)

    def _column(self, like: Tensor, empty: float) -> Tensor:
        """Return a column for such rows, of single precision or better."""
        shape = (self._size + 1, *like.shape[1:])
        kind = like.dtype if like.dtype.itemsize >= 4 else torch.float32
        if like.device.type != "cpu" or self._size <= MAPPED_ABOVE:
            return torch.full(shape, empty, dtype=kind, device=like.device)
        # A file without a name: its space is free again when the column is.
        with tempfile.TemporaryFile(dir=self._folder) as file:
            numbers = torch.empty(0, dtype=kind, device="cpu").numpy().dtype
            mapped = np.memmap(file, numbers, "w+", shape=shape)
        column = torch.from_numpy(mapped)
        return column if empty == 0 else column.fill_(empty)

    def _require_inside(self) -> None:
        if self._span is None:
            return
        low, high = self._span.tolist()
        if low < 0 or high >= self._size:
            raise DataError(
                f"{self._who} has {self._size} samples, and batches hold indices from {low} to "
                f"{high}; give the number of samples that indices count, from 0."
            )


def _widest(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])])


def _add(total: Tensor, places: Tensor, rows: Tensor) -> None:
    # On a GPU, this one adds rows of one place in a fixed order, and the other one does not.
    if total.is_cuda:
        total.index_put_((places,), rows, accumulate=True)
    else:
        total.index_add_(0, places, rows)
