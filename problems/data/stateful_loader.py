"""Start a loader that has been given its position in an epoch, as ``torchdata``'s are.

Their samplers may have no ``state_dict``. Such a one is read again from the start of the epoch, and
has to draw the order that it drew then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from .epoch_start import EpochStart
from .loader_parts import Substitute, is_known, is_stateful


def continued(loader: Any, start: EpochStart) -> Iterator[Any]:
    """Start a stateful loader from the random state at the start of its epoch."""
    start.restore(loader)
    restarts = getattr(loader, "restart_on_stop_iteration", None)
    if restarts is None:
        with _order_drawn_at(start, loader):
            return _with_sampler_read(iter(loader))
    # torchdata's Loader would read a batch to see whether the epoch has ended.
    loader.restart_on_stop_iteration = False
    try:
        return iter(loader)
    finally:
        loader.restart_on_stop_iteration = restarts


@contextmanager
def _order_drawn_at(start: EpochStart, loader: Any) -> Iterator[None]:
    """Let the loader's sampler start from ``start`` each time; torchdata starts it repeatedly."""
    batches = getattr(loader, "batch_sampler", None)
    owner, name = (batches, "sampler") if hasattr(batches, "sampler") else (loader, "batch_sampler")
    sampler = getattr(owner, name, None)
    if not isinstance(loader, DataLoader) or is_known(sampler) or is_stateful(sampler):
        yield
        return
    restarted = _Restarted(sampler, start, loader)
    vars(owner)[name] = restarted
    try:
        yield
    finally:
        vars(owner)[name] = sampler
        restarted.start = None


class _Restarted(Substitute):
    def __init__(self, sampler: Any, start: EpochStart, loader: Any) -> None:
        super().__init__(sampler)
        self.start: EpochStart | None = start
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        if self.start is None:
            return iter(self.sampler)
        now = EpochStart.of(self._loader, self.start.device)
        self.start.restore(self._loader)
        iterator: Iterator[Any] = iter(self.sampler)
        if self.start.is_present(self._loader):
            # It will draw when it is read, after the loader has drawn a seed.
            now.restore(self._loader)
        return iterator


def _with_sampler_read(iterator: Iterator[Any]) -> Iterator[Any]:
    """Pass over the samples that ``torchdata``'s iterator would pass over at its first batch."""
    inner: Any = iterator
    if isinstance(getattr(inner, "_sampler_iter", None), itertools.islice):
        inner._sampler_iter = iter(inner._index_sampler)
        for _ in range(inner._sampler_iter_yielded):
            next(inner._sampler_iter)
    return iterator
