"""Accuracy of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from metaweight.problems import ConfigurationError

from ._arrays import Numbers, as_array, require_any, require_length
from ._canvas import empty_figure

_MOST_BARS = 20


def per_class_accuracy(
    accuracies: Mapping[str, Numbers],
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw the accuracy of every class for several methods, as bars, or lines for many classes.

    Args:
        accuracies: For each method, by its name, (C,) of one run or (R, C) of several, whose mean
            is drawn; a class that was never tested is "not a number" and left out of the mean.
        class_names: Names of the C classes, in the order they are given; numbers when left out.
        title: Title above the axes.

    Raises:
        ConfigurationError: For shapes that do not fit together, or no method at all.
    """
    require_any(accuracies, "accuracies")
    rows = {name: as_array(a, 2, f"accuracies[{name!r}]") for name, a in accuracies.items()}
    classes = next(iter(rows.values())).shape[1]
    names = [str(c) for c in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise ConfigurationError(
            f"{len(names)} class names were given for {classes} classes; give one for each."
        )
    figure, (axes,) = empty_figure(width=10.0)
    palette = matplotlib.colormaps["tab20" if len(rows) > 10 else "tab10"]
    places, width = np.arange(classes), 0.85 / len(rows)
    for position, (name, row) in enumerate(rows.items()):
        require_length(row, classes, f"accuracies[{name!r}]", "classes")
        mean = np.ma.masked_invalid(row).mean(axis=0).filled(np.nan)
        colour = palette(position % palette.N)
        if classes <= _MOST_BARS:
            shift = (position - (len(rows) - 1) / 2) * width
            axes.bar(places + shift, mean, width, label=name, color=colour)
        else:
            axes.plot(places, mean, label=name, color=colour, linewidth=1)
    if classes <= _MOST_BARS:
        axes.set_xticks(places, names)
    axes.set(xlabel="class", ylabel="test accuracy (%)", ylim=(0, 100), title=title)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
