"""The weights of samples with right and with wrong labels."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaweight.problems.base.settings import require_count

from ._arrays import Numbers, as_array, require_length
from ._canvas import empty_figure

COLOURS = ("tab:blue", "tab:red")


def weight_histogram(
    weights: Numbers, wrong_labels: Numbers, bins: int = 40, title: str = ""
) -> Figure:
    """Draw histograms of the weights, one of samples with right labels and one with wrong labels.

    Args:
        weights: One per sample, (N,).
        wrong_labels: Which samples have a wrong label, (N,) of true and false.
        bins: Bars between the smallest and the largest weight.
        title: Title above the axes.

    Raises:
        ConfigurationError: For shapes that do not fit together, or no sample at all.
    """
    values = as_array(weights, 1, "weights")
    wrong = as_array(wrong_labels, 1, "wrong_labels").astype(bool)
    require_count("weight_histogram", "bins", bins, least=1)
    require_length(values, len(wrong), "weights", "labels")
    figure, (axes,) = empty_figure()
    draw_histogram(axes, values, wrong, ("right labels", "wrong labels"), bins)
    axes.set(title=title)
    return figure


def draw_histogram(
    axes: Axes,
    values: NDArray[np.float64],
    apart: NDArray[np.bool_],
    names: tuple[str, str],
    bins: int = 40,
) -> None:
    """Draw two histograms into axes: of the other weights, and of those that are told apart."""
    low, high = min(0.0, float(values.min())), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for name, chosen, colour in zip(names, (~apart, apart), COLOURS, strict=True):
        label = f"{name} ({int(chosen.sum())})"
        axes.hist(values[chosen], bins=edges.tolist(), alpha=0.6, label=label, color=colour)
    axes.set(xlabel="weight", ylabel="samples")
    axes.legend(loc="upper center")
