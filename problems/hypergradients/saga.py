"""Reduced variance of a quantity that is computed for one batch at a time.

Source: Defazio, Bach, Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
non-strongly convex composite objectives", NeurIPS 2014 (arXiv:1407.0202).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base import vectors
from .base import LowerProblem


def corrected(
    table: Mapping[str, Any], key: str, new: list[Tensor]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return ``new - entry + mean`` of a table, and the table with ``new`` for the entry; ``new``
    itself where it has no such entry yet."""
    entries, mean = table["entries"], table["mean"]
    known = key in entries
    change = vectors.add(new, entries[key] if known else mean, alpha=-1.0)
    size = len(entries) if known else len(entries) + 1
    following = {
        "entries": {**entries, key: new},
        "mean": vectors.add(mean, change, alpha=1.0 / size),
    }
    return (vectors.add(mean, change) if known else new), following


def table_of(lower: LowerProblem, name: str, like: Sequence[Tensor]) -> Mapping[str, Any]:
    """Return a table of the state; an empty one at first, or when the sizes have changed."""
    found = (lower.state or {}).get(name)
    if found is None or [t.shape for t in found["mean"]] != [t.shape for t in like]:
        return {"entries": {}, "mean": [t.new_zeros(t.shape) for t in like]}
    table: Mapping[str, Any] = found
    return table
