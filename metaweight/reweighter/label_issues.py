"""Labels that a trained network contradicts, as a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_issues(
    classes: NDArray[Any],
    given: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
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
    try:
        import pandas as pd  # noqa: PLC0415 (optional)
    except ImportError as missing:
        raise ImportError(
            "label_issues_ is a frame of pandas, which is not installed; pip install pandas."
        ) from missing
    suggested = probabilities.argmax(1)
    confidence = probabilities[np.arange(len(suggested)), given]
    where = np.flatnonzero(suggested != given)
    where = where[np.argsort(confidence[where], kind="stable")]
    return pd.DataFrame(
        {
            "index": where,
            "given": classes[given[where]],
            "suggested": classes[suggested[where]],
            "weight": weights[where],
            "self_confidence": confidence[where],
        }
    )
