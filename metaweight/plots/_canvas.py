"""Empty figures that all plots start from."""

from __future__ import annotations

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NOTEBOOK_DPI = 100


class ShownFigure(Figure):
    """A figure that a notebook shows as a picture, whether or not ``pyplot`` was imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=NOTEBOOK_DPI)
        return buffer.getvalue()


def empty_figure(
    panels: int = 1, width: float = 6.4, height: float = 4.2
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, side by side with a common vertical axis.

    Args:
        panels: Number of axes.
        width: Width of the whole figure, in inches.
        height: Height of the whole figure, in inches.
    """
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    return figure, list(axes)
