"""Labels that a trained network contradicts, as a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NORMAL = 1.4826
"""The standard deviation of a normal distribution whose median absolute deviation is 1."""


def label_issues(
    classes: NDArray[Any], given: NDArray[np.int64], probabilities: Floats, weights: Floats
) -> Any:
    """Return a frame of the samples whose most probable class is another, least plausible first.

    Args:
        classes: The classes, (C,).
        given: Number of the class each sample was given, (N,).
        probabilities: Predicted probabilities, (N, C).
        weights: Weights of the samples, (N,).

    Raises:
        ImportError: When pandas is not installed.
    """
    suggested = probabilities.argmax(1)
    confidence = probabilities[np.arange(len(suggested)), given]
    where = np.flatnonzero(suggested != given)
    where = where[np.argsort(confidence[where], kind="stable")]
    return _frame(
        {
            "index": where,
            "given": classes[given[where]],
            "suggested": classes[suggested[where]],
            "weight": weights[where],
            "self_confidence": confidence[where],
        }
    )


def entry_issues(given: NDArray[Any], probabilities: Floats, weights: Floats) -> Any:
    """Return a frame of the labels, of several a sample, that are less probable than not.

    Args:
        given: Which labels each sample was given, (N, K), zeros and ones.
        probabilities: Predicted probabilities, (N, K).
        weights: Weights of the samples, (N,).

    Raises:
        ImportError: When pandas is not installed.
    """
    held = given > 0.5
    confidence = np.where(held, probabilities, 1 - probabilities)
    rows, columns = np.nonzero(held != (probabilities > 0.5))
    order = np.argsort(confidence[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    return _frame(
        {
            "index": rows,
            "label": columns,
            "given": held[rows, columns].astype(int),
            "suggested": (~held[rows, columns]).astype(int),
            "weight": weights[rows],
            "self_confidence": confidence[rows, columns],
        }
    )


def residual_issues(given: Floats, predicted: Floats, weights: Floats) -> Any:
    """Return a frame of the numbers whose residual is far from the others, the largest first.

    Args:
        given: The number each sample was given, (N,).
        predicted: The predicted one, (N,).
        weights: Weights of the samples, (N,).

    Raises:
        ImportError: When pandas is not installed.
    """
    residuals = given - predicted
    where = np.flatnonzero(are_far(residuals))
    where = where[np.argsort(-np.abs(residuals[where]), kind="stable")]
    return _frame(
        {
            "index": where,
            "given": given[where],
            "suggested": predicted[where],
            "weight": weights[where],
            "residual": residuals[where],
        }
    )


def are_far(residuals: Floats) -> NDArray[np.bool_]:
    """Return which residuals are more than three deviations from their median, (N,).

    The deviation is the median absolute one, scaled to that of a normal distribution.
    """
    apart = np.abs(residuals - np.median(residuals))
    found: NDArray[np.bool_] = apart > 3 * _NORMAL * np.median(apart)
    return found


def _frame(columns: dict[str, NDArray[Any]]) -> Any:
    try:
        import pandas as pd  # noqa: PLC0415 (optional)
    except ImportError as missing:
        raise ImportError(
            "label_issues_ is a frame of pandas, which is not installed; pip install pandas."
        ) from missing
    return pd.DataFrame(columns)
