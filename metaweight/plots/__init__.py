"""Figures of learned weights and of the runs that learned them.

Every function returns a :class:`matplotlib.figure.Figure` of its own: nothing is registered with
``matplotlib.pyplot``, so no display is needed and nothing has to be closed. ::

    training_curves({"ce": (steps, accuracies)}).savefig("curves.png")
"""

from __future__ import annotations

from .accuracy import per_class_accuracy
from .curves import training_curves
from .histogram import weight_histogram
from .reweighting import reweighting_summary
from .weights import weight_against_loss

__all__ = [
    "per_class_accuracy",
    "reweighting_summary",
    "training_curves",
    "weight_against_loss",
    "weight_histogram",
]
