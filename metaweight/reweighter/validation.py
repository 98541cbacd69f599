"""Samples and labels given to an estimator: validated by scikit-learn, or read by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)

from metaweight._batch import Part
from metaweight._batch_reader import BatchReader
from metaweight.problems import DataError

from .columns import numbers_of
from .given import Given, is_table, read_given
from .targets import Targets

Labelled = tuple[Given, NDArray[Any]]
# What scikit-learn notes of a table while it reads it.
_OF_TABLES = ("n_features_in_", "feature_names_in_")
_ONE_ALONE = "Expected more than 1 value per channel when training"

# The order of memory would show in the rounding of sums.
_READ: dict[str, Any] = {"dtype": "numeric", "allow_nd": True, "order": "C"}


@contextmanager
def fitted_anew(estimator: Any) -> Iterator[None]:
    """Fit an estimator inside, without what it knows of the tables before; after an error it is as
    it was."""
    before = dict(vars(estimator))
    for name in _OF_TABLES:
        vars(estimator).pop(name, None)
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextmanager
def batches_of_one_refused(who: str) -> Iterator[None]:
    """Say what to do where batch norm is trained on one sample.

    Raises:
        ValueError: Then.
    """
    try:
        yield
    except ValueError as error:
        if _ONE_ALONE not in str(error):
            raise
        raise ValueError(
            f"{who} received a module with batch norm, and a batch of one sample, which has no "
            f"variance ({error}); give a batch_size that leaves two samples or more for the last "
            "batch, two clean samples or more, or a module with another norm."
        ) from error


class ReadingEstimator(BaseEstimator):  # type: ignore[misc]
    """An estimator that is given tables, named arrays or data sets."""

    module: Any
    inputs: Part
    labels: Part
    logits: Part
    _y_read: ClassVar[dict[str, Any]]

    def _found(self, X: Any, y: Any) -> Any:
        """Return labels, which may be with the samples."""
        return y if y is not None or is_table(X) else self._read(X, y, self._reader())[1]

    def _reader(self) -> BatchReader:
        return BatchReader(type(self).__name__, self.inputs, self.labels, self.logits)

    def _read(self, X: Any, y: Any, reader: BatchReader) -> Labelled:
        """Return samples and their labels, which are apart or with them."""
        if is_table(X):
            validate = partial(validate_data, self, X, y, **_READ, **self._y_read)
            X, y = numbers_of(reader.who, X, validate)
            return Given.table(X), self._labels_of(y)
        if self.module is None:
            raise DataError(
                f"{reader.who} received {type(X).__name__} and has no network for it; give "
                "module=..., one that takes its inputs."
            )
        return self._read_parts(X, y, reader)

    def _read_others(
        self, more: Mapping[str, Any], given: Given, targets: Targets, reader: BatchReader
    ) -> dict[str, Labelled]:
        """Return further samples and labels by their names, those that are there."""
        found = {
            name: self._read_more(name, part, given, reader)
            for name, part in more.items()
            if part is not None
        }
        for name, (_, labels) in found.items():
            targets.require(name, labels)
        return found

    def _read_more(self, name: str, more: Any, given: Given, reader: BatchReader) -> Labelled:
        """Return further samples of the form of those given, and their labels."""
        pair = isinstance(more, (tuple, list)) and len(more) == 2 and is_table(more)
        X, y = more if pair else (more, None)
        if isinstance(given.held, np.ndarray):
            if not pair:
                raise ValueError(
                    f"{name} received {type(more).__name__}; give (X_{name}, y_{name}), samples "
                    "and their labels."
                )
            table = self._table_like(X)
            y = self._labels_of(check_array(y, accept_sparse=True, ensure_2d=False, dtype=None))
            if len(table) != len(y):
                raise ValueError(
                    f"{name} holds {len(table)} samples and {len(y)} labels; give one label for "
                    "each."
                )
            return table, y
        found, y = self._read_parts(X, y, reader)
        return found.named(f"{reader.who} {name}", given.names), y

    def _table_like(self, X: Any) -> Given:
        """Return a table of the features that fit was given."""
        validate = partial(validate_data, self, X, reset=False, **_READ)
        return Given.table(numbers_of(type(self).__name__, X, validate))

    def _read_parts(self, X: Any, y: Any, reader: BatchReader) -> Labelled:
        given = read_given(X, reader, labelled=True if y is None else None)
        if y is not None and given.labels is not None:
            raise DataError(f"{reader.who} received labels in X and as y; leave out y.")
        labels = given.labels if y is None else y
        found = check_array(labels, accept_sparse=True, ensure_2d=False, dtype=None)
        check_consistent_length(range(len(given)), found)
        return given, self._labels_of(found)

    def _labels_of(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return labels in the shape that is worked with."""
        return column_or_1d(y, warn=True)  # type: ignore[no-any-return]
