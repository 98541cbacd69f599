"""Sharing of a loader's batches among processes.

A loader's ``batch_size`` is that of one process. The batches of all ``world`` processes together
are those of a loader in one process with ``world * batch_size``, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from ..base.errors import ConfigurationError
from ..base.reduction import Reduction
from ..state.random_streams import seeded_streams


@runtime_checkable
class Shareable(Protocol):
    """A loader that can read one process's share of its batches."""

    def take_share(self, rank: int, world: int) -> None:
        """Read the share of process ``rank`` of ``world`` from the next epoch on."""


class ShareSampler(Sampler[Any]):
    """One process's share of the order of another sampler.

    All processes draw the same order; when its length is not a multiple of their number, its
    beginning is repeated, so that all have the same number of samples.

    Args:
        sampler: The other sampler. It may draw from torch's global stream, which is restored, or
            from a generator of its own, which must be the same in all processes.
        rank: Number of this process.
        world: How many there are.
        seed: Seed of the order, the same in all processes.
    """

    def __init__(self, sampler: Any, rank: int, world: int, seed: int) -> None:
        self.sampler = sampler
        self.rank = rank
        self.num_replicas = world
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples of each process."""
        return (len(self.sampler) + self.num_replicas - 1) // self.num_replicas

    def __iter__(self) -> Iterator[Any]:
        """Draw the order and yield every ``world``-th sample, from the ``rank``-th on."""
        with seeded_streams(torch.device("cpu"), (self.seed + self.epoch) % 2**63):
            order = list(self.sampler)
        total = len(self) * self.num_replicas
        while order and len(order) < total:
            order += order[: total - len(order)]
        return iter(order[self.rank : total : self.num_replicas])


def take_share(loader: Any, reduction: Reduction, owner: str) -> None:
    """Make a loader read this process's share; does nothing in a single process.

    A ``DataLoader`` over a map-style data set gets a sampler, unless it has one for several
    processes. Iterable data sets, lists and other objects are assumed to be this process's own
    share.

    Raises:
        ConfigurationError: For a ``DataLoader`` whose batches cannot be shared out.
    """
    if reduction.world == 1:
        return
    if isinstance(loader, Shareable):
        loader.take_share(reduction.rank, reduction.world)
    elif isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        _share_data_loader(loader, reduction, owner)


def tell_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Set the epoch of a sampler for several processes."""
    for sampler in _samplers(loader):
        if hasattr(sampler, "num_replicas") and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def _share_data_loader(loader: Any, reduction: Reduction, owner: str) -> None:
    if any(hasattr(sampler, "num_replicas") for sampler in _samplers(loader)):
        return
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or not hasattr(batches.sampler, "__len__"):
        raise ConfigurationError(
            f"A DataLoader of problem {owner!r} takes its batches from "
            f"{type(batches or loader.sampler).__name__}, which cannot be shared out among "
            f"{reduction.world} processes. Give it a sampler for several processes, such as "
            "torch.utils.data.DistributedSampler, or a batch_size."
        )
    # The sampler of a DataLoader cannot be replaced, but batches are read from this object.
    batches.sampler = ShareSampler(batches.sampler, reduction.rank, reduction.world, reduction.seed)


def _samplers(loader: Any) -> list[Any]:
    batches = getattr(loader, "batch_sampler", None)
    found = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    return [s for s in found if s is not None]
