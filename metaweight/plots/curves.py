"""A measured value over the course of training."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from ._arrays import Numbers, as_array, require_any, require_length
from ._canvas import empty_figure


def training_curves(
    curves: Mapping[str, tuple[Numbers, Numbers]],
    value_name: str = "test accuracy (%)",
    title: str = "",
) -> Figure:
    """Draw a value against the training step: the mean over runs with a band of ±1 deviation.

    Args:
        curves: For each line, by its name, the steps (T,) and the values, (T,) of one run or (R, T)
            of several.
        value_name: Label of the vertical axis.
        title: Title above the axes.

    Raises:
        ConfigurationError: For shapes that do not fit together, or no curve at all.
    """
    require_any(curves, "curves")
    figure, (axes,) = empty_figure(width=7.6)
    palette = matplotlib.colormaps["tab20" if len(curves) > 10 else "tab10"]
    for position, (name, (steps, values)) in enumerate(curves.items()):
        along = as_array(steps, 1, f"steps of {name!r}")
        runs = as_array(values, 2, f"values of {name!r}")
        require_length(runs, len(along), f"curve {name!r}", "steps")
        colour = palette(position % palette.N)
        mean, deviation = runs.mean(axis=0), runs.std(axis=0)
        axes.plot(along, mean, label=name, color=colour)
        if len(runs) > 1:
            axes.fill_between(along, mean - deviation, mean + deviation, color=colour, alpha=0.15)
    axes.set(xlabel="step", ylabel=value_name, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
