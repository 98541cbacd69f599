"""Samples as people have them: tables, named arrays, and data sets read sample by sample."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from metaweight._batch import Batch
from metaweight._batch_reader import BatchReader
from metaweight._labels import read_values
from metaweight.data import SampleLoader
from metaweight.problems import DataError

from .inputs import Inputs
from .samples import ReadSamples, Samples, TensorSamples

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, eq=False)
class Given:
    """Samples that a network has not been made for yet.

    Args:
        held: Those in memory: an array, a tensor, or tensors by name; else a data set.
        size: Number of samples.
        width: Numbers in a sample.
        labels: Labels found in them.
        names: Names of their parts, where they have several.
        collate: Makes a batch of a list of samples of a data set.
        workers: Processes that read a data set.
        batch_size: Samples in a batch of a ``DataLoader``.
    """

    held: Any
    size: int
    width: int
    labels: NDArray[Any] | None = None
    names: tuple[str, ...] | None = None
    collate: Collate | None = None
    workers: int = 0
    batch_size: int | None = None

    def __len__(self) -> int:
        return self.size

    @classmethod
    def table(cls, X: NDArray[Any]) -> Given:
        """Return samples that scikit-learn has validated."""
        return cls(X, len(X), math.prod(X.shape[1:]))

    def named(self, who: str, names: tuple[str, ...] | None) -> Given:
        """Return the same samples with the parts that others have.

        Raises:
            DataError: When they have no such parts.
        """
        if (names is None) != (self.names is None) or set(names or ()) - set(self.names or ()):
            raise DataError(
                f"{who} was fitted on {_shown(names)}, but received {_shown(self.names)}; give "
                "samples of the same form."
            )
        return replace(self, names=names)

    def samples(
        self, reader: BatchReader, inputs: Inputs, targets: Tensor | None = None
    ) -> Samples:
        """Return the samples as inputs of a network, with their targets."""
        targets = torch.zeros(len(self)) if targets is None else targets
        if self.collate is None:
            return TensorSamples(inputs.of(self.held, self.names), targets)
        join = _Join(reader, self.collate, inputs, self.names)
        more = {} if self.batch_size is None else {"together": self.batch_size}
        return ReadSamples(self.held, targets, join, self.workers, **more)


def is_table(X: Any) -> bool:
    """Return whether samples are for scikit-learn to validate: arrays, frames, tensors, lists."""
    rows = isinstance(X, list) and bool(X) and isinstance(X[0], Mapping)
    # One kind of sparse matrix is a dictionary, of which scikit-learn says what is amiss.
    named = rows or (isinstance(X, Mapping) and not hasattr(X, "toarray"))
    return not (named or isinstance(X, (Dataset, DataLoader)) or _of_hugging_face(X))


def read_given(X: Any, reader: BatchReader, *, labelled: bool | None) -> Given:
    """Return samples in memory, or of a data set, with the labels found in them.

    Args:
        X: Named arrays, a list of dictionaries, a ``TensorDataset``, or an array; or a map-style
            data set, such as torch's or Hugging Face's, or a ``DataLoader`` of one.
        reader: Where inputs and labels are.
        labelled: Whether they must have labels; ``None`` where they may have some.

    Raises:
        DataError: For samples that cannot be read.
    """
    batch_size, workers = None, 0
    collate: Collate = _collate
    if isinstance(X, DataLoader):
        _require_all(reader.who, X)
        batch_size, workers = X.batch_size, X.num_workers
        collate = _collate if X.collate_fn is default_collate else X.collate_fn
        X = X.dataset
    if isinstance(X, list):
        X = _collate(X)
    if isinstance(X, TensorDataset) and collate is _collate:
        X = X.tensors
    if not isinstance(X, Dataset) and not _of_hugging_face(X):
        return replace(_in_memory(X, reader, labelled), batch_size=batch_size)
    if isinstance(X, IterableDataset) or not len(X):
        raise DataError(
            f"{reader.who} received {type(X).__name__}, which has no samples by position; give a "
            "data set with __len__ and __getitem__, of one sample or more."
        )
    found = _parts(reader, collate([X[0]]), labelled)
    names, width = _described(found.inputs)
    labels = None if found.labels is None else _labels_of(X, reader, collate, workers)
    return Given(X, len(X), width, labels, names, collate, workers, batch_size)


def _in_memory(X: Any, reader: BatchReader, labelled: bool | None) -> Given:
    whole = X if isinstance(X, (Mapping, tuple)) else _numbers(reader.who, "X", X)
    found = _parts(reader, whole, labelled)
    named = isinstance(found.inputs, Mapping)
    parts = {
        name: numbers
        for name, part in (found.inputs.items() if named else (("X", found.inputs),))
        if (numbers := _numbers(reader.who, name, part)) is not None
    }
    sizes = {name: len(part) for name, part in parts.items()}
    labels = None if found.labels is None else as_array(found.labels)
    sizes |= {} if labels is None else {"labels": len(labels)}
    if not parts or len(set(sizes.values())) > 1 or not min(sizes.values()):
        counts = ", ".join(f"{number} of {name!r}" for name, number in sizes.items())
        raise DataError(
            f"{reader.who} received {counts or 'no numbers'}; give arrays of as many samples each, "
            "and one sample or more."
        )
    held = parts if named else parts["X"]
    names, width = _described(held)
    return Given(held, next(iter(sizes.values())), width, labels, names)


def _parts(reader: BatchReader, batch: Any, labelled: bool | None) -> Batch:
    if labelled is None:
        with contextlib.suppress(DataError):
            return reader.read(batch)
    return reader.read(batch, labelled=bool(labelled))


def _numbers(who: str, name: str, values: Any) -> Tensor | None:
    """Return a part as a tensor on the host; text is left out."""
    with contextlib.suppress(ValueError):
        if not isinstance(values, Tensor) and _is_text(np.asarray(values)):
            return None
    found = read_values(values, f"{who} received {name!r}, which", DataError).detach().cpu()
    if not found.ndim:
        raise DataError(f"{who} received {name!r} of one number; give an array of samples.")
    endless = ~found.isfinite().reshape(len(found), -1).all(1)
    if endless.any():
        row = int(endless.nonzero()[0])
        value = found[row][~found[row].isfinite()].flatten()[0].item()
        raise DataError(
            f"{who} received {name!r} with {value} in row {row}; give finite numbers, or leave out "
            "such samples."
        )
    return found


def _is_text(array: NDArray[Any]) -> bool:
    objects = array.dtype.kind == "O" and array.size
    return array.dtype.kind in "US" or bool(objects and isinstance(array.flat[0], str))


def _described(inputs: Any) -> tuple[tuple[str, ...] | None, int]:
    """Return the names of the parts that are tensors, and how many numbers a sample has in them."""
    if not isinstance(inputs, Mapping):
        return None, math.prod(inputs.shape[1:]) if isinstance(inputs, Tensor) else 0
    parts = {name: part for name, part in inputs.items() if isinstance(part, Tensor)}
    return tuple(parts), sum(math.prod(part.shape[1:]) for part in parts.values())


def _labels_of(dataset: Any, reader: BatchReader, collate: Collate, workers: int) -> NDArray[Any]:
    """Read the labels of a data set in order."""
    labels = partial(_labels, reader, collate)
    loader = SampleLoader(dataset, 128, shuffle=False, collate_fn=labels, num_workers=workers)
    return np.concatenate([as_array(part) for part in loader])


def _labels(reader: BatchReader, collate: Collate, samples: list[Any]) -> Any:
    return reader.read(collate(samples)).labels


def as_array(labels: Any) -> NDArray[Any]:
    """Return labels of any kind as an array."""
    return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)


def _collate(samples: list[Any]) -> Any:
    """Join samples as torch does, but lists of numbers in a mapping as tensors, and none of text.

    Raises:
        DataError: When they cannot be joined.
    """
    try:
        return default_collate([_with_tensors(sample) for sample in samples])
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise DataError(
            f"Samples of type {type(samples[0]).__name__} could not be joined ({error}); make them "
            "tensors of one shape, or give a DataLoader with a collate_fn that does."
        ) from error


def _with_tensors(sample: Any) -> Any:
    if not isinstance(sample, Mapping):
        return sample
    return {
        name: read_values(part, name, DataError) if isinstance(part, list) else part
        for name, part in sample.items()
        if not (isinstance(part, list) and part and isinstance(part[0], str))
    }


@dataclass(frozen=True)
class _Join:
    """Makes the inputs of a batch of samples."""

    reader: BatchReader
    collate: Collate
    inputs: Inputs
    names: tuple[str, ...] | None

    def __call__(self, samples: list[Any]) -> Any:
        read = self.reader.read(self.collate(samples), labelled=False).inputs
        return self.inputs.of(read, self.names)


def _of_hugging_face(X: Any) -> bool:
    """Return whether something is a ``datasets.Dataset``, which is none of torch's."""
    return hasattr(X, "column_names") and hasattr(X, "features") and hasattr(X, "__getitem__")


def _shown(names: tuple[str, ...] | None) -> str:
    return "one array" if names is None else f"the parts {', '.join(map(repr, names))}"


def _require_all(who: str, loader: DataLoader[Any]) -> None:
    """Refuse a loader that leaves out samples, or repeats them."""
    sampler = loader.sampler
    usual = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if loader.batch_size is None or not usual:
        raise DataError(
            f"{who} received a DataLoader with a {type(sampler).__name__} or batches of its own, "
            "but draws the order itself and weighs every sample of the data set; give a DataLoader "
            "without a sampler, or the data set."
        )
