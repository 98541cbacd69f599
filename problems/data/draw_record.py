"""Random numbers that a sampler draws in the middle of an epoch, between those of the training.

An endless ``randperm``, or sampling with replacement from a generator that two loaders share, draws
as it goes. To read such an epoch again, each draw must start from the state it started from before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from .epoch_start import EpochStart
from .loader_parts import Substitute

LIMIT = 500


class DrawRecord:
    """Random states before the draws that were made in the middle of the present epoch.

    Args:
        past: The states that draws of the same epoch, read before, started from.

    Attributes:
        states: The states by the number of items read before.
        complete: Whether there are all of them; no more than :data:`LIMIT` are kept.
    """

    def __init__(self, past: DrawRecord | None = None) -> None:
        self.states: dict[int, EpochStart] = {}
        self.complete: bool = past is None or past.complete
        self._past: Mapping[int, EpochStart] = {} if past is None else past.states
        self._read = 0

    def read(self, item: Callable[[], Any], loader: Any, device: torch.device) -> Any:
        """Return the next item, and record the state before it if random numbers were drawn."""
        if self._read in self._past:
            self._past[self._read].restore(loader)
        before = EpochStart.of(loader, device)
        found = item()
        if self._read and not before.is_present(loader):
            self.complete = self.complete and len(self.states) < LIMIT
            if self.complete:
                self.states[self._read] = before
        self._read += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the record, to be saved."""
        states = {number: state.state_dict(set()) for number, state in self.states.items()}
        return {"states": states, "complete": self.complete}

    @classmethod
    def from_state_dict(cls, device: torch.device, state: Mapping[str, Any]) -> DrawRecord:
        """Return the record that :meth:`state_dict` saved."""
        made = cls()
        made.complete = state["complete"]
        made.states = {
            number: EpochStart.from_state_dict(device, saved)
            for number, saved in state["states"].items()
        }
        return made


def started(loader: Any, device: torch.device, record: Callable[[], DrawRecord]) -> Iterator[Any]:
    """Start an epoch of ``loader`` whose draws are recorded in the record of that time."""
    plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if not plain or loader._dataset_kind:
        # Other iterables, and data sets that are streams, draw themselves.
        return _Recorded(iter(loader), record, loader, device)
    where = "batch_sampler" if loader.batch_sampler is not None else "sampler"
    sampler = vars(loader)[where]
    # torch's loader takes an iterator from its sampler at the start, and its workers' requests.
    vars(loader)[where] = _RecordedSampler(sampler, record, loader, device)
    try:
        return iter(loader)
    finally:
        vars(loader)[where] = sampler


class _Recorded(Iterator[Any]):
    def __init__(
        self,
        iterator: Iterator[Any],
        record: Callable[[], DrawRecord],
        loader: Any,
        device: torch.device,
    ) -> None:
        self._iterator, self._record = iterator, record
        self._loader, self._device = loader, device

    def __next__(self) -> Any:
        return self._record().read(self._iterator.__next__, self._loader, self._device)


class _RecordedSampler(Substitute):
    def __init__(
        self, sampler: Any, record: Callable[[], DrawRecord], loader: Any, device: torch.device
    ) -> None:
        super().__init__(sampler)
        self._record, self._loader, self._device = record, loader, device

    def __iter__(self) -> Iterator[Any]:
        return _Recorded(iter(self.sampler), self._record, self._loader, self._device)
