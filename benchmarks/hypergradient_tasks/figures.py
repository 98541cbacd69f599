"""The figures: error over iterations, and peak memory over unrolled steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

Curve = Sequence[Mapping[str, float]]
MARKERS = {"metaweight": "o", "betty-ml": "x", "higher": "+", "torchopt": "1"}


def error_curves(tasks: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draw the relative error of every iterative method against its iterations, a panel a task."""
    figure = Figure(figsize=(4.2 * len(tasks) + 2.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    labels = list(dict.fromkeys(label for curves in tasks.values() for label in curves))
    for axes, (task, curves) in zip(panels, tasks.items(), strict=True):
        for label, points in curves.items():
            axes.loglog(
                [p["iterations"] for p in points],
                [max(p["error"], 1e-16) for p in points],
                label=label,
                **_style(label, labels),
            )
        axes.set(xlabel="iterations", title=task)
        axes.grid(alpha=0.3)
    # Diverging errors would compress the other curves.
    panels[0].set(ylabel="relative error in float64", ylim=(1e-16, 1e2))
    panels[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def memory_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each contender's peak memory against the number of steps."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    labels = list(dict.fromkeys(row["contender"] for row in rows))
    for label in labels:
        own = [row for row in rows if row["contender"] == label and row["failed"] is None]
        axes.plot(
            [row["at"] for row in own],
            [row["peak MiB"] for row in own],
            label=label,
            **_style(label, labels),
        )
    axes.set(xlabel="unrolled steps", ylabel="peak memory of the process (MiB)", ylim=(0, None))
    axes.set_xticks(sorted({row["at"] for row in rows}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _style(label: str, labels: Sequence[str]) -> dict[str, Any]:
    palette = matplotlib.colormaps["tab20" if len(labels) > 10 else "tab10"]
    library = label.split(":", maxsplit=1)[0]
    return {
        "color": palette(labels.index(label) % palette.N),
        "marker": MARKERS.get(library, "."),
        "linestyle": "-" if library == "metaweight" else "--",
    }
