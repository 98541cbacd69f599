"""Samples with targets, of which batches ``(inputs, targets)`` are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from metaweight.data import SampleLoader, TensorLoader
from metaweight.problems import DataError
from metaweight.problems.data.batches import move_batch

_TOGETHER, _PARTS_TOGETHER = 1024, 128


@dataclass(frozen=True, eq=False)
class TensorSamples:
    """Samples in memory.

    Args:
        inputs: A tensor, (N, …), or several by name.
        targets: A target for each, (N, …).
    """

    inputs: Any
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.targets.device

    def to(self, device: torch.device | str) -> TensorSamples:
        """Return them on a device."""
        where = torch.device(device)
        return TensorSamples(move_batch(self.inputs, where), self.targets.to(where))

    def gather(self, positions: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and the targets at positions."""
        chosen = _each(lambda part: part.index_select(0, positions), self.inputs)
        return chosen, self.targets.index_select(0, positions)

    def subset(self, positions: Tensor) -> TensorSamples:
        """Return the samples at positions, in that order."""
        return TensorSamples(*self.gather(positions))

    def concat(self, other: TensorSamples) -> TensorSamples:
        """Return these samples followed by others of the same form."""
        inputs = _each(lambda *parts: torch.cat(parts), self.inputs, other.inputs)
        return TensorSamples(inputs, torch.cat([self.targets, other.targets]))

    def loader(self, batch_size: int, *, seed: int, device: str | None) -> Iterable[Any]:
        """Return a loader of batches in random orders."""
        return TensorLoader(self, batch_size, seed=seed, device=device)

    def in_order(self, batch_size: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Yield batches in the order of the samples."""
        size = batch_size or (_TOGETHER if isinstance(self.inputs, Tensor) else _PARTS_TOGETHER)
        for positions in torch.split(torch.arange(len(self), device=self.device), size):
            yield self.gather(positions)


@dataclass(frozen=True, eq=False)
class ReadSamples:
    """Samples that a data set reads one by one.

    Args:
        dataset: Samples by position.
        targets: A target for each, (N, …).
        join: Makes the inputs of a batch of a list of samples.
        workers: Processes that read.
        together: Samples that are read together where they are evaluated.
    """

    dataset: Any
    targets: Tensor
    join: Callable[[list[Any]], Any]
    workers: int = 0
    together: int = _PARTS_TOGETHER

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, positions: Tensor) -> ReadSamples:
        """Return the samples at positions, in that order."""
        chosen = Subset(self.dataset, positions.tolist())
        return replace(self, dataset=chosen, targets=self.targets[positions])

    def concat(self, other: ReadSamples) -> ReadSamples:
        """Return these samples followed by others of the same form, each joined as they are."""
        parts = [self.dataset, other.dataset]
        join = self.join
        if join != other.join:
            parts = [_Marked(part, number) for number, part in enumerate(parts)]
            join = _JoinEach((self.join, other.join))
        both: Dataset[Any] = ConcatDataset(parts)
        targets = torch.cat([self.targets, other.targets])
        return replace(self, dataset=both, targets=targets, join=join)

    def loader(self, batch_size: int, *, seed: int, device: str | None) -> Iterable[Any]:
        """Return a loader of batches in random orders."""
        return self._loader(batch_size, seed=seed, device=device)

    def in_order(self, batch_size: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Yield batches in the order of the samples."""
        # A few samples are not worth a process.
        workers = self.workers if batch_size is None else 0
        size = batch_size or self.together
        return iter(replace(self, workers=workers)._loader(size, shuffle=False))

    def _loader(self, batch_size: int, **settings: Any) -> SampleLoader:
        return SampleLoader(
            _Pairs(self.dataset, self.targets),
            batch_size,
            collate_fn=self._batch,
            num_workers=self.workers,
            **settings,
        )

    def _batch(self, pairs: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
        samples, targets = zip(*pairs, strict=True)
        return self.join(list(samples)), torch.stack(targets)


Samples = TensorSamples | ReadSamples


class _Pairs(Dataset[Any]):
    """Each sample with its target."""

    def __init__(self, dataset: Any, targets: Tensor) -> None:
        self.dataset = dataset
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Any, Tensor]:
        return self.dataset[position], self.targets[position]


class _Marked(Dataset[Any]):
    """Each sample after the number of the data set that it is from."""

    def __init__(self, dataset: Any, number: int) -> None:
        self.dataset = dataset
        self.number = number

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return self.number, self.dataset[position]


@dataclass(frozen=True)
class _JoinEach:
    """Makes the inputs of a batch of samples of several data sets, in their order.

    Args:
        joins: What makes those of each.
    """

    joins: tuple[Callable[[list[Any]], Any], ...]

    def __call__(self, samples: list[tuple[int, Any]]) -> Any:
        order: list[int] = []
        joined = []
        for number, join in enumerate(self.joins):
            places = [i for i, (mark, _) in enumerate(samples) if mark == number]
            if places:
                joined.append(join([samples[i][1] for i in places]))
            order += places
        back = torch.tensor(order).argsort()
        try:
            return _each(lambda *parts: torch.cat(parts)[back], *joined)
        except RuntimeError as error:
            raise DataError(
                "Samples of X and clean ones are joined to inputs that do not fit together "
                f"({error}); give both a collate_fn that makes the same form of them, or "
                "train_on_clean=False."
            ) from error


def _each(change: Callable[..., Tensor], *inputs: Any) -> Any:
    """Apply a function to tensors, or to those of the same name."""
    if isinstance(inputs[0], Mapping):
        return {name: change(*(each[name] for each in inputs)) for name in inputs[0]}
    return change(*inputs)
