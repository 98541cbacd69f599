"""Batches read sample by sample, each sample with random numbers seeded by its place in the epoch.

Worker processes and the main process run the same code here, so that they read the same batches.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from metaweight._host import as_tensor
from metaweight.problems import DataError

from ._epochs import Epoch

_WORD = 2**64 - 1


class Request(NamedTuple):
    """A batch to read."""

    key: int
    """Key of the epoch."""
    places: list[int]
    """Places of the samples in the epoch."""
    positions: list[int]
    """Positions in the dataset."""


class Requests:
    """Sampler of the batches of an epoch that are still to be read, for ``DataLoader``.

    Args:
        batch_size: Samples of a batch of one process.
        batches: Batches of an epoch.
        rank: Number of this process; it reads every ``world``-th sample from this one on.
        world: How many processes there are.

    Attributes:
        epoch: The epoch whose batches to give.
    """

    def __init__(self, batch_size: int, batches: int, rank: int = 0, world: int = 1) -> None:
        self.epoch: Epoch | None = None
        self._size = batch_size * world
        self._batches = batches
        self._rank = rank
        self._world = world

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return self._batches

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests, starting at the first batch that was not delivered."""
        epoch = self.epoch
        if epoch is None:
            return
        # Requests run ahead of what is delivered, so this counter is their own.
        for batch in range(epoch.delivered, self._batches):
            first = batch * self._size
            of_all = list(range(first, min(first + self._size, len(epoch.order))))
            while len(of_all) % self._world:
                of_all += of_all[: -len(of_all) % self._world]
            places = of_all[self._rank :: self._world]
            yield Request(epoch.key, places, epoch.order[places].tolist())


class SampleReader(Dataset[Any]):
    """A dataset of batches: reads the samples of a :class:`Request` and collates them.

    Args:
        dataset: Samples by position.
        collate: Makes a batch of a list of samples.
        with_indices: Whether to return the positions, too.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], with_indices: bool
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.with_indices = with_indices

    def __getitem__(self, request: Request) -> Any:
        """Return the batch, or ``(batch, positions)``; the global random streams are not restored
        afterwards.

        Raises:
            DataError: When a sample cannot be read, naming its position.
        """
        samples = []
        for place, position in zip(request.places, request.positions, strict=True):
            seed_streams(request.key, place)
            try:
                samples.append(self.dataset[position])
            except Exception as error:
                raise DataError(
                    f"Sample {position} of a dataset of type {type(self.dataset).__name__} could "
                    f"not be read ({type(error).__name__}: {error}); fix it, or leave it out with "
                    "torch.utils.data.Subset."
                ) from error
        batch = self.collate(samples)
        # They are added once the batch is transformed, which changes what was read alone.
        return (batch, as_tensor(request.positions)) if self.with_indices else batch


def as_it_is(batch: Any) -> Any:
    """Return the batch unchanged."""
    return batch


def keep_what_is_inherited(worker: int) -> None:
    """Exclude the objects that a worker inherits by forking from its garbage collection.

    The collector would copy memory that both processes share, and finalise objects that the parent
    process still uses.
    """
    gc.freeze()


def seed_streams(key: int, place: int) -> None:
    """Seed torch's CPU stream, NumPy's and Python's by the sample at ``place`` of epoch ``key``.

    Takes about 7 µs, more than half of it in Python's generator. ``torch.manual_seed`` would take
    another 100, to seed devices that are not used here.
    """
    seed = derived_seed(key, place)
    # torch and NumPy use the same generator and keep 32 bits of a seed: with equal seeds they would
    # draw equal numbers.
    torch.default_generator.manual_seed(seed & 0xFFFFFFFF)
    np.random.seed(seed >> 32)
    random.seed(seed)


def derived_seed(key: int, place: int) -> int:
    """Return a number in [0, 2⁶⁴) by the finaliser of SplitMix64.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014).
    """
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
