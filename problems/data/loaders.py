"""The loaders of a problem: batches without end, with a count of epochs and no early start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..base.errors import DataError
from ..base.reduction import Reduction
from ..base.settings import is_count
from .batches import move_batch
from .loader_parts import is_stateful
from .reading import END, Reading
from .sharding import take_share, tell_epoch
from .validation import is_exhausted, require_loader


class BatchSource:
    """Draws batches from one or several loaders, starting a new epoch when one ends.

    Args:
        owner: Name of the problem, for messages.
        loaders: Iterables of batches. They are used as given and iterated only on demand, so that
            worker processes start with the first batch.
        on_epoch_end: Called when the first loader has ended, before it starts again.
        reduction: The processes among which batches are shared out.
    """

    def __init__(
        self,
        owner: str,
        loaders: list[Iterable[Any]],
        on_epoch_end: Callable[[], None],
        reduction: Reduction | None = None,
    ) -> None:
        self._reduction = Reduction() if reduction is None else reduction
        for loader in loaders:
            take_share(loader, self._reduction, owner)
        self.loaders = loaders
        self._owner = owner
        self._on_epoch_end = on_epoch_end
        self.readings = [self._reading(loader, index) for index, loader in enumerate(loaders)]

    @property
    def epochs(self) -> list[int]:
        """Epochs finished, per loader."""
        return [reading.epochs for reading in self.readings]

    def replace(self, loader: Iterable[Any], index: int) -> None:
        """Use another loader from the next batch on."""
        if not is_count(index, least=0) or index >= len(self.loaders):
            raise DataError(
                f"set_train_data_loader(idx={index!r}) was asked of problem {self._owner!r}, which "
                f"has {len(self.loaders)} loader(s); use an index below that."
            )
        require_loader(self._owner, index, loader)
        take_share(loader, self._reduction, self._owner)
        self.loaders[index] = loader
        before = self.readings[index]
        self.readings[index] = after = self._reading(loader, index)
        after.epochs, after.division = before.epochs, before.division + 1

    def draw(self, index: int, device: torch.device, *, channels_last: bool = False) -> Any:
        """Return the next batch of one loader, on ``device``; images in the format asked for.

        Raises:
            DataError: When the loader gives no batch even at the start of an epoch, or has fewer
                batches than it had given when it was saved.
        """
        batch = self.readings[index].read(device)
        if batch is END:
            batch = self._first_of_next_epoch(index, device)
        return move_batch(batch, device, channels_last=channels_last)

    def _first_of_next_epoch(self, index: int, device: torch.device) -> Any:
        reading = self.readings[index]
        if not reading.delivered or is_exhausted(reading.loader):
            self._require_more(index)
        if index == 0:
            self._on_epoch_end()
        # The callback may have set another loader.
        reading = self.readings[index]
        reading.end_epoch()
        batch = reading.read(device)
        if batch is END:
            raise self._nothing(index)
        return batch

    def position(self, index: int) -> dict[str, Any]:
        """Return the position of a loader, to be saved; see :meth:`Reading.position`."""
        return self.readings[index].position()

    def go_to(self, index: int, position: Mapping[str, Any], device: torch.device) -> None:
        """Restore a saved position of a loader; see :meth:`Reading.go_to`."""
        self.readings[index].go_to(position, device)

    def undo(self) -> Callable[[], None]:
        """Return a function that restores the current loaders and positions."""
        loaders, readings = list(self.loaders), list(self.readings)
        undone = [reading.undo() for reading in readings]

        def put_back() -> None:
            self.loaders[:], self.readings[:] = loaders, readings
            for undo in undone:
                undo()

        return put_back

    def _reading(self, loader: Iterable[Any], index: int) -> Reading:
        several = self._reduction.world > 1
        place = f"Loader {index} of problem {self._owner!r}"
        return Reading(loader, place, tell_epoch if several else None)

    def _require_more(self, index: int) -> None:
        """Refuse a loader that gave no batch, or is known to give none in another epoch."""
        loader = self.loaders[index]
        if is_exhausted(loader) or not is_stateful(loader):
            raise self._nothing(index)

    def _nothing(self, index: int) -> DataError:
        return DataError(
            f"Loader {index} of problem {self._owner!r} gave no batch at the start of an "
            "epoch. It is empty, or a generator that can be read only once; give it data, or "
            "an object that can be iterated again, such as a DataLoader."
        )
