"""The figures of a sweep, from its records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metaweight.plots import (
    per_class_accuracy,
    training_curves,
    weight_against_loss,
    weight_histogram,
)

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]


def figures(records: Records) -> Iterator[tuple[str, Figure]]:
    """Yield every figure with its file name.

    Args:
        records: The records of each method.
    """
    yield "training_curves.png", _curves(records)
    yield "per_class_accuracy.png", _per_class(records)
    for name, runs in records.items():
        file_name = re.sub(r"[+/]", "_", name)
        if runs[0].get("weights"):
            title = f"{name}, seed {runs[0]['asked']['seed']}"
            yield f"weight_against_loss_{file_name}.png", weighting(runs[0], title)
            # Weights that are not finite have no histogram.
            shown = [run for run in runs if any(run["weights"].get("wrong", ()))]
            if shown:
                yield f"weight_histogram_{file_name}.png", histogram(shown, name)


def weighting(record: Record, title: str) -> Figure:
    """Draw the weight functions of a run, the group of the largest classes first."""
    learned, counts = record["weights"], record["class_counts"]
    groups = range(max(learned["groups"]) + 1)
    members = [[c for c, g in enumerate(learned["groups"]) if g == group] for group in groups]
    shown = sorted(groups, key=lambda group: -max(counts[c] for c in members[group]))
    names = [_group_name(members[group], counts) for group in shown]
    moments = {
        f"step {step}": [rows[group] for group in shown]
        for step, rows in learned["functions"].items()
    }
    return weight_against_loss(learned["losses"], moments, names, title=title)


def histogram(runs: Sequence[Record], title: str) -> Figure:
    """Draw the weights of right and wrong labels at the end of some runs."""
    weights, wrong = [], []
    for run in runs:
        found = run["weights"]
        width = found["largest"] / len(found["right"])
        middles = (np.arange(len(found["right"])) + 0.5) * width
        for name, is_wrong in (("right", False), ("wrong", True)):
            weights.append(middles.repeat(found[name]))
            wrong.append(np.full(sum(found[name]), is_wrong))
    return weight_histogram(np.concatenate(weights), np.concatenate(wrong), title=title)


def _curves(records: Records) -> Figure:
    lines = {}
    for name, runs in records.items():
        # Where the number of evaluations fits itself to the time, runs share some steps only.
        steps = sorted(set.intersection(*({step for step, _ in run["curve"]} for run in runs)))
        values = [[dict(map(tuple, run["curve"]))[step] for step in steps] for run in runs]
        lines[name] = steps, values
    return training_curves(lines)


def _per_class(records: Records) -> Figure:
    rows = {
        name: [[_number(run["per_class"][c]) for c in _order(run)] for run in runs]
        for name, runs in records.items()
    }
    orders = {tuple(_order(run)) for runs in records.values() for run in runs}
    if len(orders) == 1:
        return per_class_accuracy(rows, [str(c) for c in orders.pop()])
    places = [str(place + 1) for place in range(len(orders.pop()))]
    return per_class_accuracy(rows, places, title="classes by size, the largest first")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _order(run: Record) -> list[int]:
    counts, classes = run["class_counts"], range(len(run["class_counts"]))
    tailed = run["asked"]["setting"]["imbalance_factor"] > 1
    return sorted(classes, key=lambda c: -counts[c]) if tailed else list(classes)


def _group_name(members: list[int], counts: Sequence[int]) -> str:
    sizes = [counts[c] for c in members]
    if len(members) == 1:
        return f"class {members[0]} ({sizes[0]} samples)"
    return f"{len(members)} classes ({min(sizes)} to {max(sizes)} samples)"
