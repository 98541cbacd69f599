"""A dataset with one column more, of what a model says of each sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from metaweight.problems import DataError


def require_new_column(who: str, dataset: Any, column: str) -> None:
    """Refuse a dataset without sequences, or with a column of this name.

    Raises:
        DataError: Then.
    """
    if not len(dataset):
        raise DataError(f"{who} was given a dataset without sequences; give at least one.")
    # A format or a transform may hide columns.
    if column in dataset[0] or column in (getattr(dataset, "column_names", None) or ()):
        raise DataError(
            f"The dataset has a column {column!r} already; give column=... another name."
        )


def with_column(
    dataset: Any, name: str, values: Sequence[float], order: Sequence[int] | None = None
) -> Any:
    """Return a dataset with a column of values, in an order of its places; a list for a list."""
    if hasattr(dataset, "add_column") and hasattr(dataset, "select"):
        found = dataset.add_column(name, values)
        return found if order is None else found.select(order)
    places = range(len(values)) if order is None else order
    return [{**dataset[place], name: values[place]} for place in places]


@contextmanager
def evaluated(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation inside; afterwards each module has its own mode again."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
