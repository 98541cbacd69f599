"""One loader and how far it has been read, to be restored in another process.

A loader with ``state_dict`` and ``load_state_dict`` saves its position itself, but may draw random
numbers to start again, which are not those of the training. Any other one is read again from the
start of the epoch, and the batches already delivered are discarded. Both start from the random
state at the start of the epoch, and leave all random streams as they were.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..base.errors import CheckpointError, DataError
from ..state.random_streams import RandomState, preserved_streams
from .draw_record import DrawRecord, started
from .epoch_start import DRAWS_NOTHING, EpochStart
from .loader_parts import (
    drop_early_start,
    has_dead_worker,
    is_stateful,
    length_of,
    order_is_drawn_at_start,
    starts_when_asked,
)
from .loader_randomness import changed_numbers, own_randomness, put_randomness
from .resume_doubts import doubt_of
from .sharding import Shareable
from .stateful_loader import continued

HOST = torch.device("cpu")

END: Any = object()
"""What is read at the end of an epoch."""


class Reading:
    """Reads one loader, epoch after epoch.

    Args:
        loader: An iterable of batches.
        place: Its name, for messages.
        tell_epoch: Called with the loader and the number of each epoch before that begins.

    Attributes:
        epochs: Epochs that have ended.
        delivered: Batches of the present epoch that have been read.
        division: Number of the loader among those that took each other's place; each divides the
            data into batches of its own.
        iterator: The present iterator, if an epoch has begun in this process.
        drew: Whether batches other than an epoch's first draw from the random streams; ``None``
            until that is seen. Looked at for stateful loaders that may draw.
    """

    def __init__(
        self, loader: Any, place: str, tell_epoch: Callable[[Any, int], None] | None = None
    ) -> None:
        self.loader = loader
        self.place = place
        self.epochs = 0
        self.division = 0
        self._tell_epoch = tell_epoch
        self.delivered = 0
        self.iterator: Iterator[Any] | None = None
        self.drew: bool | None = None
        self.first_drew = False
        self._start: EpochStart | None = None
        self._record = DrawRecord()
        # The state that the loader has been given and has not begun to read from.
        self._loaded: Mapping[str, Any] | None = None
        self._warned = False
        self._is_stateful = is_stateful(loader)
        # Loaders of metaweight draw from their own generators alone, which they save.
        self._saves_all = self._is_stateful and isinstance(loader, Shareable)
        self._numbers = {} if self._saves_all else own_randomness(loader)[1]
        self._attributes = dict(vars(loader)) if starts_when_asked(loader) else None

    def read(self, device: torch.device) -> Any:
        """Return the next batch, which may draw from the random streams of the host and ``device``;
        :data:`END` at the end of the epoch.

        Raises:
            DataError: When the loader has fewer batches than it had given when it was saved.
        """
        if self.iterator is None:
            try:
                self.iterator = self._begun(device)
            except StopIteration:
                # Its __iter__ has looked for a first batch and found none.
                return END
        try:
            if self._is_stateful and not (self._saves_all or self.drew):
                batch = self._observed(self.iterator, device)
            else:
                batch = next(self.iterator, END)
        except Exception as error:
            start = None if self._is_stateful else self._start
            if start is None or not has_dead_worker(self.iterator):
                raise
            warnings.warn(
                f"A worker of {self.place[0].lower()}{self.place[1:]} has died ({error}); its "
                f"epoch is read again up to batch {self.delivered} by new workers.",
                stacklevel=4,
            )
            try:
                self.iterator = self._resumed(device, start)
            except StopIteration:
                return END
            batch = next(self.iterator, END)
        if batch is not END:
            self.delivered += 1
        return batch

    def end_epoch(self) -> None:
        """Count an epoch, and begin the next one with the next batch."""
        self.epochs += 1
        self.forget()

    def forget(self) -> None:
        """Begin an epoch with the next batch."""
        if self._start is not DRAWS_NOTHING:
            self._record = DrawRecord()
        self.iterator = self._start = self._loaded = None
        self.delivered = 0

    @property
    def starts_fresh(self) -> bool:
        """Whether persistent workers, if it has them, began with the present epoch."""
        return self._start is None or self._start.fresh

    @property
    def record_is_complete(self) -> bool:
        """Whether all random states within the epoch are kept that are needed to read it again."""
        return self._record.complete

    def position(self) -> dict[str, Any]:
        """Return the position, to be saved. Warns, once, where it will not be restored exactly."""
        self._warn()
        loader = self.loader
        found: dict[str, Any] = {
            "epochs": self.epochs,
            "length": length_of(loader),
            "division": self.division,
        }
        if self._saves_all:
            return found | {"own": self._own_state()}
        generators, numbers = own_randomness(loader)
        kept = changed_numbers(numbers, self._numbers)
        if self._start is not None:
            kept |= changed_numbers(dict(self._start.numbers), self._numbers)
        return found | {
            "own": self._own_state(),
            "start": None if self._start is None else self._start.state_dict(kept),
            "delivered": self.delivered,
            "generators": generators,
            "numbers": {key: value for key, value in numbers.items() if key in kept},
            "draws": self._record.state_dict(),
            "drew": self.drew,
        }

    def go_to(self, position: Mapping[str, Any], device: torch.device) -> None:
        """Restore a saved position; the loader is read up to there at the next batch.

        Raises:
            CheckpointError: When it is an iterator that has already given batches.
        """
        loader, own = self.loader, position["own"]
        if own is None and self.iterator is not None:
            require_repeatable(loader, self.place)
        self.forget()
        self.epochs = position["epochs"]
        self.division = position.get("division", 0)
        if own is not None:
            if getattr(loader, "_iter_for_state_dict", False):
                # torchdata's Loader ignores the state given to it until it has been started once.
                iter(loader)
            loader.load_state_dict(own)
            self._loaded = own
        elif self._attributes is not None:
            _replace_attributes(loader, self._attributes)
        put_randomness(loader, position.get("generators", {}), position.get("numbers", {}))
        if position.get("start") is not None:
            self._start = EpochStart.from_state_dict(device, position["start"])
            self.delivered = position["delivered"]
        self.drew = position.get("drew")
        if "draws" in position:
            self._record = DrawRecord.from_state_dict(device, position["draws"])

    def undo(self) -> Callable[[], None]:
        """Return a function that restores the present position."""
        before, loader = dict(vars(self)), self.loader
        own: Any = None
        if is_stateful(loader):
            asks = self.iterator is not None or not starts_when_asked(loader)
            own = _state_of(loader) if asks else None
        attributes = dict(vars(loader)) if starts_when_asked(loader) and own is None else None

        def put_back() -> None:
            vars(self).update(before)
            if own is not None:
                loader.load_state_dict(own)
                self.iterator, self._loaded = None, own
            elif attributes is not None:
                _replace_attributes(loader, attributes)

        return put_back

    def _own_state(self) -> Any:
        if self._loaded is not None or not is_stateful(self.loader):
            return self._loaded
        if self.iterator is None and starts_when_asked(self.loader):
            return None
        return _state_of(self.loader)

    def _begun(self, device: torch.device) -> Iterator[Any]:
        if self._start is not None:
            return self._resumed(device, self._start)
        # A loader whose state was saved between two epochs begins one now.
        self._loaded = None
        loader, self.delivered = self.loader, 0
        if self._tell_epoch is not None:
            self._tell_epoch(loader, self.epochs)
        if self._saves_all:
            return iter(loader)
        if type(loader) is list:
            self._start = DRAWS_NOTHING
            return iter(loader)
        self._start = EpochStart.of(loader, device)
        return self._started(device)

    def _started(self, device: torch.device) -> Iterator[Any]:
        if self._is_stateful or order_is_drawn_at_start(self.loader):
            return iter(self.loader)
        return started(self.loader, device, lambda: self._record)

    def _resumed(self, device: torch.device, start: EpochStart) -> Iterator[Any]:
        """Start the epoch again and go to the position; all streams are restored."""
        loader, past = self.loader, self._record
        if start.streams is None:
            return self._passed_over(iter(loader))
        self._warn()
        if self.epochs:
            drop_early_start(loader)
        with preserved_streams(device):
            generators, numbers = own_randomness(loader)
            try:
                if self._loaded is not None:
                    iterator = continued(loader, start)
                else:
                    start.put_workers(loader, lambda: self._started(device))
                    start.restore(loader)
                    self._record = DrawRecord(past)
                    return self._passed_over(self._started(device))
            finally:
                put_randomness(loader, generators, numbers)
            self._loaded = None
            if self.drew or not hasattr(iterator, "gi_frame"):
                return iterator
            # A generator begins with its first batch, and batches draw nothing themselves.
            return itertools.chain(list(itertools.islice(iterator, 1)), iterator)

    def _passed_over(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for number in range(self.delivered):
            try:
                next(iterator)
            except StopIteration:
                raise DataError(
                    f"{self.place} was to continue after batch {self.delivered} of its epoch, the "
                    f"position of the checkpoint, but has only {number} now; give it the data it "
                    "was saved with."
                ) from None
        return iterator

    def _observed(self, iterator: Iterator[Any], device: torch.device) -> Any:
        """Return the next batch, and see whether it draws from the random streams."""
        before = RandomState(device)
        batch = next(iterator, END)
        if batch is END:
            return END
        drew = not before.is_present()
        if self.delivered:
            self.drew = drew
        else:
            self.first_drew = drew
        return batch

    def _warn(self) -> None:
        if self._warned or (self.iterator is None and self._start is None):
            return
        doubt = doubt_of(self)
        if doubt is not None:
            self._warned = True
            warnings.warn(f"{self.place} {doubt}", stacklevel=5)


def require_repeatable(loader: object, place: str) -> None:
    """Refuse an iterator that has already given batches: it cannot start again.

    Raises:
        CheckpointError: Naming the loader.
    """
    if isinstance(loader, Iterator):
        raise CheckpointError(
            f"{place} is an iterator of type {type(loader).__name__} "
            "that has already given batches, so that it cannot continue at the checkpoint's "
            "position; build the program again before loading, or give an object that can be "
            "iterated again."
        )


def _state_of(loader: Any) -> Any:
    """Return a copy of a stateful loader's state, without drawing random numbers."""
    with preserved_streams(HOST):
        return copy.deepcopy(loader.state_dict())


def _replace_attributes(loader: Any, attributes: Mapping[str, Any]) -> None:
    vars(loader).clear()
    vars(loader).update(attributes)
