"""The loaders of a problem: batches without end, with a count of epochs and no early start."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ..base.errors import DataError
from ..base.reduction import Reduction
from ..base.settings import is_count
from .batches import move_batch
from .loader_position import (
    EpochStart,
    has_dead_worker,
    is_stateful,
    length_of,
    own_randomness,
    put_randomness,
    require_repeatable,
)
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
        self.epochs = [0] * len(loaders)
        self._owner = owner
        self._iterators: list[Iterator[Any] | None] = [None] * len(loaders)
        self._starts: list[EpochStart | None] = [None] * len(loaders)
        self._delivered = [0] * len(loaders)
        self._on_epoch_end = on_epoch_end

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
        self._forget(index)

    def draw(self, index: int, device: torch.device, *, channels_last: bool = False) -> Any:
        """Return the next batch of one loader, on ``device``; images in the format asked for.

        Raises:
            DataError: When the loader gives no batch even at the start of an epoch, or has fewer
                batches than it had given when it was saved.
        """
        iterator = self._iterators[index]
        if iterator is None:
            iterator = self._begin(index, device)
        try:
            batch = next(iterator)
        except StopIteration:
            self._require_more(index)
            batch = self._first_of_next_epoch(index, device)
        except Exception as error:
            batch = self._read_again(error, iterator, index, device)
        self._delivered[index] += 1
        return move_batch(batch, device, channels_last=channels_last)

    def position(self, index: int) -> dict[str, Any]:
        """Return the position of a loader, to be saved."""
        loader, start = self.loaders[index], self._starts[index]
        found: dict[str, Any] = {"epochs": self.epochs[index], "length": length_of(loader)}
        if is_stateful(loader):
            return found | {"own": loader.state_dict()}  # type: ignore[attr-defined]
        generators, numbers = own_randomness(loader)
        return found | {
            "own": None,
            "start": None if start is None else start.state_dict(),
            "delivered": self._delivered[index],
            "generators": generators,
            "numbers": numbers,
        }

    def go_to(self, index: int, position: Mapping[str, Any], device: torch.device) -> None:
        """Restore a saved position of a loader, which is read up to there at the next draw.

        Raises:
            CheckpointError: When it is an iterator that has already given batches.
        """
        loader = self.loaders[index]
        own = position["own"]
        if own is None and self._iterators[index] is not None:
            require_repeatable(loader, self._owner, index)
        self._forget(index)
        self.epochs[index] = position["epochs"]
        if own is not None:
            loader.load_state_dict(own)  # type: ignore[attr-defined]
            return
        put_randomness(loader, position["generators"], position["numbers"])
        if position["start"] is not None:
            self._starts[index] = EpochStart.from_state_dict(device, position["start"])
            self._delivered[index] = position["delivered"]

    def undo(self) -> Callable[[], None]:
        """Return a function that restores the current loaders and positions."""
        loaders, epochs, delivered = list(self.loaders), list(self.epochs), list(self._delivered)
        iterators, starts = list(self._iterators), list(self._starts)
        own = {
            index: (loader, copy.deepcopy(loader.state_dict()))  # type: ignore[attr-defined]
            for index, loader in enumerate(self.loaders)
            if is_stateful(loader)
        }

        def put_back() -> None:
            self.loaders[:], self.epochs[:], self._delivered[:] = loaders, epochs, delivered
            self._iterators[:], self._starts[:] = iterators, starts
            for index, (loader, state) in own.items():
                loader.load_state_dict(state)  # type: ignore[attr-defined]
                self._iterators[index] = None

        return put_back

    def _forget(self, index: int) -> None:
        self._iterators[index] = None
        self._starts[index] = None
        self._delivered[index] = 0

    def _begin(self, index: int, device: torch.device) -> Iterator[Any]:
        loader, start = self.loaders[index], self._starts[index]
        if start is not None:
            place = f"Loader {index} of problem {self._owner!r}"
            iterator = start.replay(loader, self._delivered[index], device, place)
        else:
            if self._reduction.world > 1:
                tell_epoch(loader, self.epochs[index])
            if type(loader) is list or not is_stateful(loader):
                self._starts[index] = EpochStart.of(loader, device)
            self._delivered[index] = 0
            iterator = iter(loader)
        self._iterators[index] = iterator
        return iterator

    def _read_again(
        self, error: Exception, iterator: Iterator[Any], index: int, device: torch.device
    ) -> Any:
        """Read the epoch again after a worker has died, and return the batch that was due."""
        if self._starts[index] is None or not has_dead_worker(iterator):
            raise error
        warnings.warn(
            f"A worker of loader {index} of problem {self._owner!r} has died ({error}); its "
            f"epoch is read again up to batch {self._delivered[index]} by new workers.",
            stacklevel=3,
        )
        return next(self._begin(index, device))

    def _first_of_next_epoch(self, index: int, device: torch.device) -> Any:
        if index == 0:
            self._on_epoch_end()
        self.epochs[index] += 1
        self._forget(index)
        iterator = self._begin(index, device)
        try:
            return next(iterator)
        except StopIteration:
            raise self._nothing(index) from None
        except Exception as error:
            return self._read_again(error, iterator, index, device)

    def _require_more(self, index: int) -> None:
        """Refuse a loader that is known to give no batch in another epoch."""
        loader = self.loaders[index]
        gave_nothing = not self._delivered[index] and not is_stateful(loader)
        if gave_nothing or is_exhausted(loader):
            raise self._nothing(index) from None

    def _nothing(self, index: int) -> DataError:
        return DataError(
            f"Loader {index} of problem {self._owner!r} gave no batch at the start of an "
            "epoch. It is empty, or a generator that can be read only once; give it data, or "
            "an object that can be iterated again, such as a DataLoader."
        )
