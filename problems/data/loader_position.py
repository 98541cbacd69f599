"""A loader's position in its epoch, to be restored in another process.

A loader with ``state_dict`` and ``load_state_dict`` saves its position itself. Any other one is
read again from the start of the epoch, with the random streams it was started with, and the batches
already delivered are discarded. That is exact when batches are a function of the data and of these
streams: a ``DataLoader`` draws its order and the seeds of its workers when it is started. It is not
exact when the data set or the sampler has a random state of its own, nor for the random numbers of
persistent workers, which live longer than an epoch.
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
    """The random state of a loader at the start of an epoch.

    Attributes:
        streams: All random streams; ``None`` for lists and tuples, which draw from none.
        generators: States of the loader's own generators, by their places in it.
        numbers: Epoch numbers of its samplers (``set_epoch``), by their places in it.
        fresh: Whether its workers, if they are persistent, were not started yet.
    """

    streams: RandomState | None
    generators: Mapping[str, torch.Tensor]
    numbers: Mapping[str, int]
    fresh: bool

    @classmethod
    def of(cls, loader: Iterable[Any], device: torch.device) -> EpochStart:
        """Return the random state from which the next epoch of ``loader`` will draw."""
        if type(loader) in (list, tuple):
            return DRAWS_NOTHING
        generators, numbers = own_randomness(loader)
        return cls(RandomState(device), generators, numbers, _workers(loader) is None)

    def replay(
        self, loader: Iterable[Any], delivered: int, device: torch.device, place: str
    ) -> Iterator[Any]:
        """Start the same epoch again and skip the batches delivered; all streams are restored.

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
                f"{place} is an iterator of type {type(loader).__name__}: {delivered} of its "
                "batches are skipped to continue, which is right only if it starts again with the "
                "same ones; give an object that can be iterated again, to be sure.",
                stacklevel=4,
            )
        if not self.fresh and getattr(loader, "persistent_workers", False):
            warnings.warn(
                f"{place} has persistent workers: its order continues exactly, but random "
                "numbers drawn by the workers do not; use persistent_workers=False to have both.",
                stacklevel=4,
            )

    def _put_workers(self, loader: Any) -> None:
        """Start or remove persistent workers, as they were: starting them draws a number."""
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
        """Return the start that :meth:`state_dict` saved."""
        streams = state["streams"]
        return cls(
            None if streams is None else RandomState.from_state_dict(device, streams),
            state["generators"],
            state["numbers"],
            state["fresh"],
        )


DRAWS_NOTHING = EpochStart(None, {}, {}, True)


def is_stateful(loader: object) -> bool:
    """Return whether a loader saves and restores its position itself."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def has_dead_worker(iterator: object) -> bool:
    """Return whether a worker of an iterator of torch's loader has ended and can be replaced.

    Persistent workers cannot be replaced: their random states are lost.
    """
    stays = getattr(iterator, "_persistent_workers", False)
    return not stays and any(not w.is_alive() for w in getattr(iterator, "_workers", ()))


def length_of(loader: Any) -> int | None:
    """Return the number of batches of an epoch, or ``None`` if the loader does not know it."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def require_repeatable(loader: object, owner: str, index: int) -> None:
    """Refuse an iterator that has already given batches: it cannot start again.

    Raises:
        CheckpointError: Naming the problem.
    """
    if isinstance(loader, Iterator):
        raise CheckpointError(
            f"Loader {index} of problem {owner!r} is an iterator of type {type(loader).__name__} "
            "that has already given batches, so that it cannot continue at the checkpoint's "
            "position; build the program again before loading, or give an object that can be "
            "iterated again."
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
                f"{place} was to continue after batch {delivered} of its epoch, the position of "
                f"the checkpoint, but has only {number} now; give it the data it was saved with."
            ) from None
    return iterator
