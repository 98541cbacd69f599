"""The random state of a loader at one moment, such as the start of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..state.random_streams import RandomState
from .loader_randomness import own_randomness, put_randomness


@dataclass(frozen=True)
class EpochStart:
    """The random state of a loader at the start of an epoch.

    Attributes:
        streams: All random streams; ``None`` for lists and tuples, which draw from none.
        generators: States of the loader's own generators, by their places in it.
        numbers: Counters of its parts, by their places in it.
        fresh: Whether its workers, if they are persistent, were not started yet.
    """

    streams: RandomState | None
    generators: Mapping[str, Any]
    numbers: Mapping[str, Any]
    fresh: bool

    @classmethod
    def of(cls, loader: Iterable[Any], device: torch.device) -> EpochStart:
        """Return the random state from which the next epoch of ``loader`` will draw."""
        if type(loader) in (list, tuple):
            return DRAWS_NOTHING
        generators, numbers = own_randomness(loader)
        fresh = getattr(loader, "_iterator", None) is None
        return cls(RandomState(device), generators, numbers, fresh)

    def restore(self, loader: Iterable[Any]) -> None:
        """Set the random streams and the loader to this state."""
        put_randomness(loader, self.generators, self.numbers)
        if self.streams is not None:
            self.streams.restore()

    def is_present(self, loader: Iterable[Any]) -> bool:
        """Return whether streams and generators are in this state."""
        if self.streams is None:
            return True
        generators, _ = own_randomness(loader)
        return self.streams.is_present() and all(
            _same(generators.get(key), state) for key, state in self.generators.items()
        )

    @property
    def device(self) -> torch.device:
        """The device whose stream is held beside those of the host."""
        return torch.device("cpu") if self.streams is None else self.streams.device

    def put_workers(self, loader: Any, start: Callable[[], object]) -> None:
        """Start or remove persistent workers, as they were: starting them draws a number."""
        if not getattr(loader, "persistent_workers", False):
            return
        if self.fresh:
            loader._iterator = None
        elif loader._iterator is None:
            start()

    def state_dict(self, counters: set[str] | None = None) -> dict[str, Any]:
        """Return the start, to be saved, with these counters or all."""
        return {
            "streams": None if self.streams is None else self.streams.state_dict(),
            "generators": dict(self.generators),
            "numbers": {k: v for k, v in self.numbers.items() if counters is None or k in counters},
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


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    return repr(left) == repr(right)
