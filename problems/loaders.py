"""The loaders of a problem: endless batches, epochs counted, nothing started early."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .batches import move_batch
from .errors import DataError


class BatchSource:
    """Draws batches from one or several loaders, starting a new epoch where one ends.

    Args:
        owner: Name of the problem, for messages.
        loaders: Iterables of batches. They are used as given and iterated only on demand, so that
            worker processes start with the first batch.
        on_epoch_end: Called when the first loader has ended, before it starts again.
    """

    def __init__(
        self, owner: str, loaders: list[Iterable[Any]], on_epoch_end: Callable[[], None]
    ) -> None:
        self.loaders = loaders
        self.epochs = [0] * len(loaders)
        self._owner = owner
        self._iterators: list[Iterator[Any] | None] = [None] * len(loaders)
        self._on_epoch_end = on_epoch_end

    def replace(self, loader: Iterable[Any], index: int) -> None:
        """Use another loader from the next batch on."""
        if not 0 <= index < len(self.loaders):
            raise DataError(
                f"set_train_data_loader(idx={index}) was asked of problem {self._owner!r}, which "
                f"has {len(self.loaders)} loader(s); use an index below that."
            )
        self.loaders[index] = loader
        self._iterators[index] = None

    def draw(self, index: int, device: torch.device, *, channels_last: bool = False) -> Any:
        """Return the next batch of one loader, on ``device``; images laid out as asked.

        Raises:
            DataError: When the loader gives no batch even at the start of an epoch.
        """
        iterator = self._iterators[index]
        if iterator is None:
            iterator = self._iterators[index] = iter(self.loaders[index])
        try:
            batch = next(iterator)
        except StopIteration:
            batch = self._first_of_next_epoch(index)
        return move_batch(batch, device, channels_last=channels_last)

    def _first_of_next_epoch(self, index: int) -> Any:
        if index == 0:
            self._on_epoch_end()
        self.epochs[index] += 1
        iterator = self._iterators[index] = iter(self.loaders[index])
        try:
            return next(iterator)
        except StopIteration:
            raise DataError(
                f"Loader {index} of problem {self._owner!r} gave no batch at the start of an "
                "epoch. It is empty, or a generator that can be read only once; give it data, or "
                "an object that can be iterated again, such as a DataLoader."
            ) from None
