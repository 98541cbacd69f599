"""Capture and replay of every random stream a loss may draw from.

torch (host and device), Python's ``random`` and NumPy's global generator are covered, since
augmentation code uses all three.

Reading Python's or NumPy's generator takes 12 and 60 µs and drags 20 kB through the cache: more
than a small problem's whole loss, though most losses touch neither. The words of a Mersenne twister
can be looked at in place in 1 µs, so a stream is read or written in full only if they have moved.
"""

from __future__ import annotations

import ctypes
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MERSENNE_TWISTER_BYTES = 625 * 4


class RandomState:
    """The state of all random streams at one moment."""

    __slots__ = ("_device", "_device_state", "_numpy", "_python", "_torch")

    def __init__(self, device: torch.device) -> None:
        self._torch: Tensor = torch.default_generator.get_state()
        self._device = device
        self._device_state: Tensor | None = (
            None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        )
        self._python = _python_stream.capture()
        self._numpy = _numpy_stream.capture()

    def restore(self) -> None:
        """Set every stream to this state."""
        torch.default_generator.set_state(self._torch)
        if self._device_state is not None:
            torch.get_device_module(self._device).set_rng_state(self._device_state, self._device)
        _python_stream.restore(self._python)
        _numpy_stream.restore(self._numpy)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every stream, to be saved."""
        return {
            "torch": self._torch,
            "device": self._device_state,
            "python": self._python[1],
            "numpy": self._numpy[1],
        }

    @classmethod
    def from_state_dict(cls, device: torch.device, state: Mapping[str, Any]) -> RandomState:
        """Return the state that :meth:`state_dict` told, for a program on ``device``."""
        made = cls.__new__(cls)
        made._torch = state["torch"]
        made._device = device
        made._device_state = None if device.type == "cpu" else state["device"]
        made._python = (None, state["python"])
        made._numpy = (None, state["numpy"])
        return made


@contextmanager
def preserved_streams(device: torch.device) -> Iterator[RandomState]:
    """Whatever is drawn inside, all streams go on afterwards as if nothing had been."""
    state = RandomState(device)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def seeded_streams(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, torch draws what ``seed`` gives; all streams go on afterwards as if nothing had been.

    The streams are that of the host and that of ``device``.
    """
    with preserved_streams(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            seeded = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(seeded, device)
        yield


State = tuple[Any, Any]


class _Stream(ABC):
    """A process-wide generator, its last full reading, and a way to see that it has not moved."""

    def __init__(self) -> None:
        self._last: State | None = None

    def capture(self) -> State:
        """Return the present state."""
        mark = self.mark()
        if self._last is None or mark is None or mark != self._last[0]:
            self._last = (mark, self.read())
        return self._last

    def restore(self, state: State) -> None:
        """Go back to a state."""
        if state[0] is None or state[0] != self.mark():
            self.write(state[1])
            self._last = state

    @abstractmethod
    def mark(self) -> Any:
        """Return what tells any two states apart, or nothing when it cannot be seen in place.

        That is the generator's words and the Gaussian it may keep for later, which is used up
        without the words changing.
        """

    @abstractmethod
    def read(self) -> Any:
        """Return the whole state."""

    @abstractmethod
    def write(self, full: Any) -> None:
        """Set the whole state."""


class _PythonStream(_Stream):
    def __init__(self) -> None:
        super().__init__()
        self._generator: random.Random = random.random.__self__  # type: ignore[attr-defined]
        self._words: Any = object_in_place(self._generator) if python_is_visible() else None

    def mark(self) -> Any:
        if self._words is None:
            return None
        return self._words.raw, self._generator.gauss_next  # type: ignore[attr-defined]

    def read(self) -> Any:
        return random.getstate()

    def write(self, full: Any) -> None:
        random.setstate(full)


class _NumpyStream(_Stream):
    def __init__(self) -> None:
        super().__init__()
        self._generator: Any = np.random.mtrand._rand  # type: ignore[attr-defined]
        self._gaussian: Any = object_in_place(self._generator) if gaussian_is_visible() else None
        self._seen: Any = None
        self._words: Any = None

    def mark(self) -> Any:
        source = self._generator._bit_generator
        if source is not self._seen:
            self._seen, self._last, self._words = source, None, None
            if type(source) is np.random.MT19937 and self._gaussian is not None:
                address = source.ctypes.state_address
                self._words = (ctypes.c_char * MERSENNE_TWISTER_BYTES).from_address(address)
        return None if self._words is None else (self._words.raw, self._gaussian.raw)

    def read(self) -> Any:
        return np.random.get_state(legacy=False)

    def write(self, full: Any) -> None:
        np.random.set_state(full)


def object_in_place(generator: Any) -> Any:
    """Return a view of the bytes of an object behind its reference count and type."""
    header = object.__basicsize__
    size = type(generator).__basicsize__ - header
    return (ctypes.c_char * size).from_address(id(generator) + header)


def python_is_visible() -> bool:
    """Whether this interpreter keeps a generator's words inside the object, seen by trying."""
    if random.Random.__basicsize__ < object.__basicsize__ + MERSENNE_TWISTER_BYTES:
        return False
    probe = random.Random(0)
    seen = {object_in_place(probe).raw}
    for _ in range(700):
        probe.random()
        seen.add(object_in_place(probe).raw)
    return len(seen) == 701 and hasattr(probe, "gauss_next")


def gaussian_is_visible() -> bool:
    """Whether this NumPy keeps a pending Gaussian inside the object, seen by trying."""
    probe = np.random.RandomState(0)
    seen = [object_in_place(probe).raw]
    for _ in range(4):
        probe.randn()
        seen.append(object_in_place(probe).raw)
    return all(a != b for a, b in pairwise(seen))


# One each per process, as the generators they mirror.
_python_stream = _PythonStream()
_numpy_stream = _NumpyStream()
