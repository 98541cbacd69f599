"""Columns of a frame that are not numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers_of(who: str, X: Any, validate: Callable[[], Any]) -> Any:
    """Return what scikit-learn makes of a table, or name the columns that it cannot read.

    Args:
        who: Who reads, for the error.
        X: The table.
        validate: Reads it, with errors of its own.

    Raises:
        ValueError: For columns of text, of categories and of dates.
    """
    if not hasattr(X, "columns"):
        return validate()
    try:
        found = validate()
    except (TypeError, ValueError) as error:
        _require_numbers(who, X, error)
        raise
    # Dates alone are an array, which scikit-learn does not look into.
    _require_numbers(who, X, None)
    return found


def _require_numbers(who: str, X: Any, cause: Exception | None) -> None:
    columns = {str(name): np.asarray(X[name]) for name in X.columns}
    amiss = {name: column for name, column in columns.items() if not _is_numeric(column)}
    if not amiss:
        return
    named = ", ".join(f"{name!r} ({_kind(column)})" for name, column in amiss.items())
    text = [name for name, column in amiss.items() if column.dtype.kind not in "Mm"]
    advice = (
        f"text and categories by ColumnTransformer([('text', OneHotEncoder(handle_unknown='ignore')"
        f", {text})], remainder='passthrough', sparse_threshold=0), in a Pipeline where only X is "
        "given",
        "dates as numbers, such as days since the first",
    )
    needed = [
        each for each, there in zip(advice, (text, len(text) < len(amiss)), strict=True) if there
    ]
    raise ValueError(
        f"{who} received a frame whose columns {named} are not numbers; encode them first, those "
        f"of X, clean and eval_set alike: {', and '.join(needed)}."
    ) from cause


def _is_numeric(column: NDArray[Any]) -> bool:
    if column.dtype.kind in "Mm":
        return False
    try:
        column.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _kind(column: NDArray[Any]) -> str:
    return "dates" if column.dtype.kind in "Mm" else f"such as {_first_text(column)!r}"


def _first_text(column: NDArray[Any]) -> Any:
    """Return the first entry that is not a number."""
    for entry in column.tolist():
        try:
            float(entry)
        except (TypeError, ValueError):
            return entry
    return column.tolist()[0]
