"""Where a loader stands in its epoch, to be found again by another process.

A loader with ``state_dict`` and ``load_state_dict`` says so itself. Any other one is read again
from the start of the epoch, with the random streams it was started with, and the batches it had
given are thrown away. That is exact where batches are a function of the data and of these streams:
a ``DataLoader`` draws its order and the seeds of its workers when it is started. It is not where
the data set or the sampler keeps a random state of its own, nor for the random numbers of
persistent workers, which outlive an epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..base.errors import CheckpointError, DataError
from ..state.random_streams import RandomState, preserved_streams

PARTS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset")


@dataclass(frozen=True)
class EpochStart:
    """What a loader drew from when an epoch of it began.

    Attributes:
        streams: All random streams; nothing for lists and tuples, which draw from none.
        generators: States of generators of its own, by where it keeps them.
        numbers: Epoch numbers of its samplers (``set_epoch``), by where it keeps them.
        fresh: Whether its workers, if they are persistent, were not yet there.
    """

    streams: RandomState | None
    generators: Mapping[str, torch.Tensor]
    numbers: Mapping[str, int]
    fresh: bool

    @classmethod
    def of(cls, loader: Iterable[Any], device: torch.device) -> EpochStart:
        """Return what the next epoch of ``loader`` will draw from."""
        if type(loader) in (list, tuple):
            return DRAWS_NOTHING
        generators, numbers = own_randomness(loader)
        return cls(RandomState(device), generators, numbers, _workers(loader) is None)

    def replay(
        self, loader: Iterable[Any], delivered: int, device: torch.device, place: str
    ) -> Iterator[Any]:
        """Start the same epoch again and pass over what it had delivered; all streams stay.

        Raises:
            DataError: When the loader has fewer batches now.
        """
        if self.streams is None:
            return _passed_over(iter(loader), delivered, place)
        self._warn(loader, delivered, place)
        with preserved_streams(device):
            generators, numbers = own_randomness(loader)
            try:
                self._put_workers(loader)
                put_randomness(loader, self.generators, self.numbers)
                self.streams.restore()
                return _passed_over(iter(loader), delivered, place)
            finally:
                put_randomness(loader, generators, numbers)

    def _warn(self, loader: Any, delivered: int, place: str) -> None:
        if isinstance(loader, Iterator):
            warnings.warn(
                f"{place} is an iterator of type {type(loader).__name__}: {delivered} batches of "
                "it are passed over to go on, which is right only where it begins anew and gives "
                "the same ones; an object that can be iterated again says so better.",
                stacklevel=4,
            )
        if not self.fresh and getattr(loader, "persistent_workers", False):
            warnings.warn(
                f"{place} has persistent workers: its order goes on exactly, but random numbers "
                "drawn by the workers start anew; use persistent_workers=False to have both.",
                stacklevel=4,
            )

    def _put_workers(self, loader: Any) -> None:
        """Let persistent workers be there, or not, as they were: starting them draws a number."""
        if not getattr(loader, "persistent_workers", False):
            return
        if self.fresh:
            loader._iterator = None
        elif loader._iterator is None:
            iter(loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the start, to be saved."""
        return {
            "streams": None if self.streams is None else self.streams.state_dict(),
            "generators": dict(self.generators),
            "numbers": dict(self.numbers),
            "fresh": self.fresh,
        }

    @classmethod
    def from_state_dict(cls, device: torch.device, state: Mapping[str, Any]) -> EpochStart:
        """Return the start that :meth:`state_dict` told."""
        streams = state["streams"]
        return cls(
            None if streams is None else RandomState.from_state_dict(device, streams),
            state["generators"],
            state["numbers"],
            state["fresh"],
        )


DRAWS_NOTHING = EpochStart(None, {}, {}, True)


def keeps_its_place(loader: object) -> bool:
    """Whether a loader saves and restores its position itself."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def has_dead_worker(iterator: object) -> bool:
    """Whether a process that reads for an iterator of torch's loader has ended and has a successor.

    Workers that outlive an epoch cannot: their random numbers are nobody else's.
    """
    stays = getattr(iterator, "_persistent_workers", False)
    return not stays and any(not w.is_alive() for w in getattr(iterator, "_workers", ()))


def length_of(loader: Any) -> int | None:
    """Return how many batches an epoch has, where the loader knows."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def require_repeatable(loader: object, owner: str, index: int) -> None:
    """Refuse an iterator that has been read from: it cannot start again.

    Raises:
        CheckpointError: Naming the problem.
    """
    if isinstance(loader, Iterator):
        raise CheckpointError(
            f"Loader {index} of problem {owner!r} is an iterator of type {type(loader).__name__} "
            "that has already given batches, so that it cannot be put where the checkpoint stood; "
            "build the program anew before loading, or give an object that can be iterated again."
        )


def own_randomness(loader: Any) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the states of a loader's own generators, and its samplers' epoch numbers."""
    generators: dict[str, torch.Tensor] = {}
    numbers: dict[str, int] = {}
    for path, part in _parts(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generators[path] = generator.get_state()
        number = getattr(part, "epoch", None)
        if hasattr(part, "set_epoch") and isinstance(number, int):
            numbers[path] = number
    return generators, numbers


def put_randomness(
    loader: Any, generators: Mapping[str, torch.Tensor], numbers: Mapping[str, int]
) -> None:
    """Set what :func:`own_randomness` returned."""
    for path, part in _parts(loader):
        if path in generators and isinstance(getattr(part, "generator", None), torch.Generator):
            part.generator.set_state(generators[path])
        if path in numbers and hasattr(part, "set_epoch"):
            part.set_epoch(numbers[path])


def _parts(loader: Any) -> Iterator[tuple[str, Any]]:
    for path in PARTS:
        part = loader
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        if part is not None:
            yield path, part


def _workers(loader: Any) -> Any:
    return getattr(loader, "_iterator", None)


def _passed_over(iterator: Iterator[Any], delivered: int, place: str) -> Iterator[Any]:
    for number in range(delivered):
        try:
            next(iterator)
        except StopIteration:
            raise DataError(
                f"{place} was to go on after batch {delivered} of its epoch, where the checkpoint "
                f"stood, but has only {number} now; give it the data it was saved with."
            ) from None
    return iterator
