"""The table of a problem's records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

ROUNDING = 1e-12
"""Suboptimality below which digits are those of rounding."""
SHARE = 0.01
COLUMNS = (
    "method",
    "library",
    "step sizes",
    "calls a step",
    "suboptimality",
    "calls to 1 %",
    "seconds to 1 %",
    "ms a step",
    "times JAX",
)
Record = Mapping[str, Any]


def table(contenders: Sequence[Sequence[Record]]) -> str:
    """Return medians over seeds, the best contender first.

    Args:
        contenders: The records of each contender, seed by seed.
    """
    ordered = sorted(contenders, key=final)
    jitted = {r[0]["method"]: _median(_times(r)) for r in contenders if r[0]["library"] == "JAX"}
    lines = ["| " + " | ".join(COLUMNS) + " |", "|:--|:--" + "|--:" * (len(COLUMNS) - 2) + "|"]
    lines += ["| " + " | ".join(_row(records, jitted)) + " |" for records in ordered]
    return "\n".join(lines)


def final(records: Sequence[Record]) -> float:
    """Return the median suboptimality at the end; that of a run that failed is infinite."""
    return statistics.median(map(_last, records))


def _last(record: Record) -> float:
    found = record["curve"]["suboptimality"][-1:]
    return math.inf if record["failed"] or found in ([], [None]) else float(found[0])


def _row(records: Sequence[Record], jitted: Mapping[str, float | None]) -> list[str]:
    one, ms = records[0], _median(_times(records))
    other = jitted.get(one["method"]) if one["library"] != "JAX" else None
    return [
        one["method"],
        one["library"],
        f"{one['lower_step']:g}, {one['upper_step']:g}",
        f"{one['calls_a_step']:g}",
        _ended(records),
        _text(_median([_until(r, "calls") for r in records]), ".0f"),
        _text(_median([_until(r, "seconds") for r in records]), ".3g"),
        _text(ms, ".3g"),
        _text(ms / other if ms and other else None, ".3g"),
    ]


def _times(records: Sequence[Record]) -> list[float | None]:
    return [r["ms_a_step"] for r in records]


def _until(record: Record, what: str) -> float | None:
    """Return how much had been spent at the first look with 1 % of the first suboptimality."""
    curve = record["curve"]
    for spent, value in zip(curve[what], curve["suboptimality"], strict=True):
        if value is not None and value <= SHARE * record["start"]:
            return float(spent)
    return None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def _ended(records: Sequence[Record]) -> str:
    value, lost = final(records), sum(map(math.isinf, map(_last, records)))
    text = f"{value:.1e}" if value > ROUNDING else f"< {ROUNDING:.0e}"
    parts = [] if math.isinf(value) else [text]
    return ", ".join(parts + [f"{lost} of {len(records)} diverged"] * (lost > 0))


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
