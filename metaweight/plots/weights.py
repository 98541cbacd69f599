"""Plots of the weighting function: the weight of a sample against its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaweight.problems import ConfigurationError

from ._arrays import Numbers, as_array, require_any, require_length
from ._canvas import empty_figure


def weight_against_loss(
    losses: Numbers,
    weights: Mapping[str, Numbers],
    group_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw weight against loss at several stages of training.

    One weighting function gives one panel with a line per stage; several, as a class-aware network
    has them, give a panel per stage with a line per group.

    Args:
        losses: Losses at which the functions were evaluated, (L,).
        weights: For each stage, by its name and in order, the weights: (L,) or (G, L).
        group_names: Names of the G groups; numbers from 0 when left out.
        title: Title above the panels.

    Raises:
        ConfigurationError: For shapes that do not fit together, or no stage at all.
    """
    require_any(weights, "weights")
    grid = as_array(losses, 1, "losses")
    stages = {name: as_array(w, 2, f"weights[{name!r}]") for name, w in weights.items()}
    groups = len(next(iter(stages.values())))
    for name, values in stages.items():
        require_length(values, len(grid), f"weights[{name!r}]", "losses")
        if len(values) != groups:
            raise ConfigurationError(
                f"weights[{name!r}] has {len(values)} groups but the first stage has {groups}; "
                "give every stage the same."
            )
    names = _group_names(group_names, groups)
    if groups == 1:
        figure, axes = empty_figure()
        _lines(axes[0], grid, np.concatenate(list(stages.values())), list(stages), "viridis")
        axes[0].legend(title="stage", fontsize="small", loc="upper right")
    else:
        figure, axes = empty_figure(len(stages), width=3.2 * len(stages) + 1.2)
        for panel, (name, values) in zip(axes, stages.items(), strict=True):
            _lines(panel, grid, values, names, "tab10" if groups <= 10 else "viridis")
            panel.set_title(name, fontsize="medium")
        if groups <= 20:
            axes[-1].legend(
                title="group", fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0)
            )
    axes[0].set_ylabel("weight")
    for panel in axes:
        panel.set_xlabel("loss")
    figure.suptitle(title)
    return figure


def _group_names(names: Sequence[str] | None, groups: int) -> list[str]:
    if names is None:
        return [str(group) for group in range(groups)]
    if len(names) != groups:
        raise ConfigurationError(
            f"{len(names)} group names were given for {groups} groups; give one for each."
        )
    return list(names)


def _lines(
    axes: Axes, grid: NDArray[np.float64], rows: NDArray[np.float64], names: list[str], colours: str
) -> None:
    palette = matplotlib.colormaps[colours]
    # A continuous colour map takes fractions of its range, a list of colours takes indices.
    listed = palette.N <= 20
    for position, (row, name) in enumerate(zip(rows, names, strict=True)):
        colour = palette(position if listed else 0.9 * position / max(1, len(rows) - 1))
        axes.plot(grid, row, label=name, color=colour)
    axes.grid(alpha=0.3)
