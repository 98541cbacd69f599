"""Reduced variance of a quantity that is computed for one batch at a time.

Source: Defazio, Bach, Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
non-strongly convex composite objectives", NeurIPS 2014 (arXiv:1407.0202).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base import vectors
from ..base.shards import is_sharded
from ..recording.recorded_steps import BatchNumber

Table = Mapping[str, Any]


def table_for(batch: BatchNumber | None, found: Table | None, like: Sequence[Tensor]) -> Table:
    """Return the table ``found`` if it has this batch's place: an entry for each batch of the same
    loader, in tensors of these shapes; otherwise an empty one."""
    division = 0 if batch is None else batch.division
    if found is not None and found.get("division", 0) == division and _fits(found["mean"], like):
        return found
    return {"division": division, "entries": {}, "mean": [t.new_zeros(t.shape) for t in like]}


def corrected(
    table: Table, batch: BatchNumber | None, new: list[Tensor]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return ``new - entry + mean`` of a table, and the table with ``new`` for the entry; ``new``
    itself where it has no such entry yet."""
    entries, mean = table["entries"], table["mean"]
    key = str(None if batch is None else batch.number)
    known = key in entries
    change = vectors.subtract(new, entries[key] if known else mean)
    size = len(entries) if known else len(entries) + 1
    following = {
        **table,
        "entries": {**entries, key: new},
        "mean": vectors.add(mean, change, alpha=1.0 / size),
    }
    return (vectors.add(mean, change) if known else new), following


def _fits(mean: Sequence[Tensor], like: Sequence[Tensor]) -> bool:
    return [_form(t) for t in mean] == [_form(t) for t in like]


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, is_sharded(tensor)
