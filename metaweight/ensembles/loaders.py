"""Loaders that read a subset of another loader's samples, otherwise in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from metaweight.data import TensorLoader
from metaweight.problems import DataError
from metaweight.problems.data.sharding import ShareSampler


class SubsetLoader(TensorLoader):
    """A :class:`~metaweight.data.TensorLoader` on some of the samples of another one.

    It has the settings of the other loader and shares its generator. Where batches hold positions,
    these are positions in the *whole* data, so that tables by sample still fit.

    Args:
        whole: The loader of all samples.
        positions: Which of them to read, (M,), int64 or a mask.

    Attributes:
        positions: Positions in the whole data, (M,). Those of a subset of a subset are too.
        size_of_whole: Samples in the whole data.

    Raises:
        DataError: For a loader of another type.
    """

    def __init__(self, whole: TensorLoader, positions: Tensor) -> None:
        if not isinstance(whole, TensorLoader):
            raise DataError(
                f"SubsetLoader received a loader of type {type(whole).__name__}; give a "
                "TensorLoader, or use subset_loader."
            )
        positions = positions.to(whole.data.device)
        super().__init__(
            whole.data.subset(positions),
            whole.batch_size,
            shuffle=whole.shuffle,
            drop_last=whole.drop_last,
            transform=whole.transform,
            generator=whole.generator,
            with_indices=whole.with_indices,
            with_replacement=whole.with_replacement,
        )
        mask = positions.dtype == torch.bool
        chosen = positions.nonzero().squeeze(1) if mask else positions
        self.positions, self.size_of_whole = chosen, len(whole.data)
        if isinstance(whole, SubsetLoader):
            self.positions, self.size_of_whole = whole.positions[chosen], whole.size_of_whole

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batches = super().__iter__()
        if not self.with_indices:
            return batches
        return ((x, y, self.positions[places]) for x, y, places in batches)


def by_position(loader: Any, values: Tensor) -> Tensor:
    """Return values of the samples that a loader reads, in order, by the positions that its batches
    hold: those in the whole data, with 0 for samples that a :class:`SubsetLoader` leaves out."""
    if not isinstance(loader, SubsetLoader):
        return values
    places = loader.positions.to(values.device)
    return values.new_zeros(loader.size_of_whole).index_copy(0, places, values)


def subset_loader(loader: Any, positions: Tensor) -> TensorLoader | DataLoader[Any]:
    """Return a loader that reads only the samples at ``positions``, otherwise as ``loader`` does.

    Args:
        loader: A ``TensorLoader``, or a ``DataLoader`` with or without shuffling.
        positions: Positions in its data, (M,), int64.

    Raises:
        DataError: For any other loader, or one with a sampler of its own.
    """
    if isinstance(loader, TensorLoader):
        return SubsetLoader(loader, positions)
    require_rebuildable(loader)
    return rebuilt(
        loader,
        Subset(loader.dataset, positions.tolist()),
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=loader.drop_last,
        generator=loader.generator,
    )


def whole_in_order(loader: Any) -> Any:
    """Return a loader for scoring that reads every sample of another one in order.

    Raises:
        DataError: For a loader that cannot be rebuilt.
    """
    if isinstance(loader, TensorLoader):
        return loader
    require_rebuildable(loader)
    # Even a loader that does not shuffle draws from its generator, which must not change here.
    generator = torch.Generator()
    return rebuilt(loader, loader.dataset, shuffle=False, drop_last=False, generator=generator)


def number_of_samples(loader: Any) -> int:
    """Return how many samples a loader chooses from.

    Raises:
        DataError: For a loader that cannot be rebuilt.
    """
    if isinstance(loader, TensorLoader):
        return len(loader.data)
    require_rebuildable(loader)
    return len(loader.dataset)


def rebuilt(
    loader: DataLoader[Any],
    dataset: Any,
    *,
    shuffle: bool,
    drop_last: bool,
    generator: torch.Generator | None,
) -> DataLoader[Any]:
    """Return a ``DataLoader`` like another one, on other data."""
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def require_rebuildable(loader: Any) -> None:
    """Refuse a loader that cannot be rebuilt to read a subset of its data.

    Raises:
        DataError: Naming its type and what to give instead.
    """
    if not isinstance(loader, DataLoader) or not _plain(loader):
        raise DataError(
            f"A {type(loader).__name__} cannot be rebuilt on a part of its samples; use a "
            "TensorLoader or a DataLoader without a sampler of its own, or tell EnsembleHook "
            "data=... to score and make_loader=..., from positions to a loader."
        )


def _plain(loader: DataLoader[Any]) -> bool:
    sampler: Any = loader.sampler
    batches: Any = loader.batch_sampler
    order = getattr(batches, "sampler", None)
    # In a program of several processes, each reads its share of the draws of the loader's sampler.
    own = order.sampler if isinstance(order, ShareSampler) else order
    if type(batches) is not BatchSampler or own is not sampler:
        return False
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) is SequentialSampler
