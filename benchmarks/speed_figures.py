"""Figures of the step benchmark: bars of ratios, and how they grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = {"metaweight": "tab:blue", "betty-ml": "tab:orange", "higher": "tab:green"}
COLOURS |= {"torchopt": "tab:red", "official algorithm": "tab:purple"}
MARKERS = {"metaweight": "o", "betty-ml": "x", "higher": "+", "torchopt": "1"}
Rows = Sequence[Mapping[str, Any]]


def ratio_bars(workloads: Mapping[str, tuple[str, Rows]]) -> Figure:
    """Draw the time of every contender relative to its base, a panel for each workload.

    Args:
        workloads: For each, by its title, the base and the rows.
    """
    numbers = [len(rows) for _, rows in workloads.values()]
    height = 0.24 * sum(numbers) + 0.9 * len(numbers) + 0.4
    figure = Figure(figsize=(8.4, height), layout="constrained")
    panels = figure.subplots(
        len(numbers), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 2 for n in numbers]}
    )[:, 0]
    for axes, (title, (base, rows)) in zip(panels, workloads.items(), strict=True):
        names = [row["contender"] for row in rows]
        values = [row[f"times {base}"] or 0.0 for row in rows]
        bars = axes.barh(names, values, color=[_colour(name) for name in names])
        texts = [f"{v:.2f}" if v else "failed" for v in values]
        axes.bar_label(bars, texts, padding=2, fontsize="small")
        axes.axvline(1.0, color="grey", linewidth=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.tick_params(labelsize="small")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(f"times as long as: {base}", fontsize="small")
    return figure


def growth_lines(kinds: Mapping[str, tuple[str, Rows]], base: str) -> Figure:
    """Draw the time of every contender relative to ``base``, against the quantity that grows.

    Args:
        kinds: For each kind of growth the label of its axis and the rows.
        base: The contender to compare with.
    """
    figure = Figure(figsize=(4.2 * len(kinds) + 3.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    labels = list(dict.fromkeys(row["contender"] for _, rows in kinds.values() for row in rows))
    palette = matplotlib.colormaps["tab10"]
    seen: dict[str, Any] = {}
    for axes, (label, rows) in zip(panels, kinds.values(), strict=True):
        for name in labels:
            own = [row for row in rows if row["contender"] == name and row[f"times {base}"]]
            if not own:
                continue
            (seen[name],) = axes.plot(
                [row["at"] for row in own],
                [row[f"times {base}"] for row in own],
                color=palette(labels.index(name) % palette.N),
                marker=MARKERS.get(_library(name), "."),
                linestyle="-" if _library(name) == "metaweight" else "--",
            )
        places = sorted({row["at"] for row in rows})
        if places[-1] > 4 * places[0]:
            axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set(xlabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"times as long as: {base}")
    figure.legend(list(seen.values()), list(seen), loc="outside right upper", fontsize="small")
    return figure


def _library(name: str) -> str:
    return name.split(",", maxsplit=1)[0]


def _colour(name: str) -> str:
    return COLOURS.get(_library(name), "tab:gray")
