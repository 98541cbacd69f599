"""A run of learned weights at a glance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ._arrays import Numbers, as_array, require_length
from ._canvas import ShownFigure
from .histogram import COLOURS, draw_histogram

_NAMES = ("others", "suspicious")


def reweighting_summary(
    losses: Numbers, weights: Numbers, suspicious: Numbers, history: Mapping[str, Numbers]
) -> Figure:
    """Draw weights against losses, a histogram of the weights, and values of each epoch.

    Values whose name ends with ``"loss"`` have a panel, and shares another.

    Args:
        losses: One per sample, (N,).
        weights: One per sample, (N,).
        suspicious: Which samples are told apart, (N,) of true and false.
        history: For each line, by its name, the values of the epochs, (E,); ``"epoch"`` are their
            numbers, 1 … E when left out. May be empty.

    Raises:
        ConfigurationError: For shapes that do not fit together, or no sample at all.
    """
    values = as_array(weights, 1, "weights")
    against = as_array(losses, 1, "losses")
    apart = as_array(suspicious, 1, "suspicious").astype(bool)
    require_length(against, len(values), "losses", "weights")
    require_length(apart, len(values), "suspicious", "weights")
    figure = ShownFigure(figsize=(10.0, 7.6), layout="constrained")
    (points, bars), (shares, curves) = figure.subplots(2, 2)
    for name, chosen, colour in zip(_NAMES, (~apart, apart), COLOURS, strict=True):
        points.scatter(against[chosen], values[chosen], s=8, alpha=0.6, label=name, color=colour)
    points.set(xlabel="loss", ylabel="weight")
    points.legend(fontsize="small")
    draw_histogram(bars, values, apart, _NAMES)
    rows = {name: as_array(row, 1, f"history[{name!r}]") for name, row in history.items()}
    epochs = rows.pop("epoch", None)
    for name, row in rows.items():
        along = np.arange(1, len(row) + 1) if epochs is None else epochs
        require_length(row, len(along), f"history[{name!r}]", "epochs")
        (curves if name.endswith("loss") else shares).plot(along, row, label=name)
    for panel, what in ((shares, "share"), (curves, "loss")):
        panel.set(xlabel="epoch", ylabel=what)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    return figure
