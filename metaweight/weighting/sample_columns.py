"""Columns of values, one row per sample, as files and in data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metaweight._written import replacing, write_rows
from metaweight.problems import DataError

Columns = Mapping[str, "np.ma.MaskedArray[Any, Any]"]


def masked(columns: Mapping[str, Tensor], never: Tensor) -> Columns:
    """Return columns on the host, masked at samples without values; a column ``count`` is whole."""
    absent = never.cpu().numpy()
    return {
        name: np.ma.MaskedArray(column.cpu().numpy(), absent & (name != "count"))
        for name, column in columns.items()
    }


def write_csv(columns: Columns, path: str | os.PathLike[str]) -> Path:
    """Write columns after one of indices; cells that are masked are empty."""
    lists = [column.tolist() for column in columns.values()]
    rows = zip(range(len(lists[0])), *lists, strict=True)
    return write_rows(path, ["index", *columns], rows)


def write_parquet(columns: Columns, path: str | os.PathLike[str]) -> Path:
    """Write columns after one of indices; cells that are masked are nulls."""
    try:
        # Modules by name: an optional package.
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as missing:
        raise ImportError(
            "A Parquet file was asked for, but the package pyarrow could not be imported "
            f"({missing}); install it with: pip install pyarrow"
        ) from missing
    arrays = {name: arrow.array(c.data, mask=c.mask) for name, c in columns.items()}
    size = len(next(iter(columns.values())))
    where = Path(path)
    with replacing(where) as partial:
        parquet.write_table(arrow.table({"index": arrow.array(range(size)), **arrays}), partial)
    return where


def added_to(dataset: Any, columns: Columns, prefix: str) -> Any:
    """Return a data set with further columns; cells that are masked are None."""
    if not hasattr(dataset, "add_column") or not hasattr(dataset, "column_names"):
        raise DataError(
            f"add_to received {type(dataset).__name__}, which has no add_column; give a "
            "datasets.Dataset, or use write_csv."
        )
    size = len(next(iter(columns.values())))
    if len(dataset) != size:
        raise DataError(
            f"The values of {size} samples cannot be added to a dataset of {len(dataset)} rows; "
            "give the one whose rows the indices count."
        )
    there = [prefix + name for name in columns if prefix + name in dataset.column_names]
    if there:
        raise DataError(
            f"The dataset has columns {', '.join(there)} already; give another prefix, or the "
            "dataset without them (remove_columns)."
        )
    for name, column in columns.items():
        dataset = dataset.add_column(prefix + name, column.tolist())
    return dataset
