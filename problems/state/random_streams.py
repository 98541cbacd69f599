"""Capture and replay of every random stream a loss may draw from.

The streams are those of torch (host and device), Python's ``random`` and NumPy's global generator,
since augmentation code uses all three.

Reading the state of Python's or NumPy's generator takes 12 and 60 µs and reads 20 kB of memory:
more than a small problem's whole loss, though most losses use neither. The first words of a
Mersenne twister and its position can be read in place in less than 1 µs, so a state is read or
written in full only if these have changed: a draw changes the position, and when the position
starts over, or a seed is set, all words are new.
"""

from __future__ import annotations

import ctypes
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MERSENNE_TWISTER_BYTES = 625 * 4
VIEWED_BYTES = 64

_CPU = torch.device("cpu")


class RandomState:
    """The state of all random streams when it is created."""

    __slots__ = ("_device", "_device_state", "_host", "_numpy", "_python", "_torch")

    def __init__(self, device: torch.device) -> None:
        self._torch: Tensor = torch.default_generator.get_state()
        self._device = device
        # Of devices alone the comparison is much cheaper than that of their types, which are text.
        self._device_state: Tensor | None = (
            None
            if device == _CPU or device.type == "cpu"
            else torch.get_device_module(device).get_rng_state(device)
        )
        self._host = host = _host_streams.capture()
        self._python, self._numpy = host[1], host[2]

    @property
    def device(self) -> torch.device:
        """The device whose stream is held beside those of the host."""
        return self._device

    def is_present(self) -> bool:
        """Return whether every stream is in this state."""
        now = RandomState(self._device)
        return (
            _same(now._torch, self._torch)
            and _same(now._device_state, self._device_state)
            and _python_stream.same(now._python, self._python)
            and _numpy_stream.same(now._numpy, self._numpy)
        )

    def restore(self) -> None:
        """Set every stream to this state."""
        torch.default_generator.set_state(self._torch)
        if self._device_state is not None:
            torch.get_device_module(self._device).set_rng_state(self._device_state, self._device)
        _host_streams.restore(self._host)

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
        """Return the state that :meth:`state_dict` saved, for a program on ``device``."""
        made = cls.__new__(cls)
        made._torch = state["torch"]
        made._device = device
        made._device_state = None if device.type == "cpu" else state["device"]
        made._python = (None, state["python"])
        made._numpy = (None, state["numpy"])
        made._host = (None, made._python, made._numpy)
        return made


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is None or right is None or _bytes_of(left) == _bytes_of(right)


def _bytes_of(state: Tensor) -> bytes:
    # A generator's state is always on the host. Read without torch, which would count a host read.
    return ctypes.string_at(state.data_ptr(), state.numel() * state.element_size())


def reseed(device: torch.device, seed: int) -> None:
    """Seed all streams."""
    torch.default_generator.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if device.type != "cpu":
        state = torch.Generator(device).manual_seed(seed % 2**63).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def preserved_streams(device: torch.device) -> Iterator[RandomState]:
    """Restore all random streams at the end of a ``with`` statement."""
    state = RandomState(device)
    try:
        yield state
    finally:
        state.restore()


@contextmanager
def seeded_streams(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's streams inside a ``with`` statement, and restore all random streams afterwards.

    Seeded are the stream of the host and that of ``device``.
    """
    with preserved_streams(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            seeded = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(seeded, device)
        yield


State = tuple[Any, Any]


class _Stream(ABC):
    """A process-wide generator, with its last state read and a fast check for changes."""

    def __init__(self) -> None:
        self._last: State | None = None

    def capture(self) -> State:
        """Return the present state."""
        mark = self.mark()
        if self._last is None or mark is None or mark != self._last[0]:
            self._last = (mark, self.read())
        return self._last

    def same(self, left: State, right: State) -> bool:
        """Return whether two states are known to be equal, without reading them in full."""
        return left[0] is not None and left[0] == right[0]

    def restore(self, state: State) -> None:
        """Restore a state."""
        if state[0] is None or state[0] != self.mark():
            self.write(state[1])
            self._last = state

    @abstractmethod
    def mark(self) -> Any:
        """Return bytes that differ between any two states, or ``None`` if not readable in place.

        These are the generator's position, some of its words, and the Gaussian that it may keep for
        the next draw, which is then used without a change of the others.
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
        self.generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self.words = python_in_place(self.generator)

    def mark(self) -> Any:
        return None if self.words is None else (self.words.raw, self.generator.gauss_next)

    def read(self) -> Any:
        return random.getstate()

    def write(self, full: Any) -> None:
        random.setstate(full)


class _NumpyStream(_Stream):
    def __init__(self) -> None:
        super().__init__()
        self.generator: Any = np.random.mtrand._rand  # type: ignore[attr-defined]
        self.gaussian = gaussian_in_place(self.generator)
        self.source: Any = None
        self.words: Any = None

    def mark(self) -> Any:
        if self.generator._bit_generator is not self.source:
            self.look_again()
        return None if self.words is None else (self.words.raw, self.gaussian.raw)

    def look_again(self) -> None:
        """Find the words of the source that the generator has now."""
        self._last, self.source = None, self.generator._bit_generator
        self.words = None if self.gaussian is None else numpy_in_place(self.source)

    def read(self) -> Any:
        return np.random.get_state(legacy=False)

    def write(self, full: Any) -> None:
        np.random.set_state(full)


def python_in_place(generator: random.Random) -> Any:
    """Return a view of a generator's position and some of its words, or ``None``.

    Tests by draws whether this interpreter stores them inside the object, and at which end.
    """
    if random.Random.__basicsize__ < object.__basicsize__ + MERSENNE_TWISTER_BYTES:
        return None
    for end in (0, -1):
        probe = random.Random(0)
        if hasattr(probe, "gauss_next") and _moves(_object_in_place(probe, end), probe.random):
            return _object_in_place(generator, end)
    return None


def numpy_in_place(source: Any) -> Any:
    """Return a view of the position and some words of a Mersenne twister, or ``None``."""
    if type(source) is not np.random.MT19937:
        return None
    for end in (-1, 0):
        probe = np.random.RandomState(np.random.MT19937(0))
        if _moves(_twister_in_place(probe._bit_generator, end), probe.rand):
            return _twister_in_place(source, end)
    return None


def gaussian_in_place(generator: Any) -> Any:
    """Return a view of a NumPy generator with its pending Gaussian, or ``None``."""
    probe = np.random.RandomState(0)
    seen = _whole_object(probe)
    looks = [seen.raw]
    for _ in range(4):
        probe.randn()
        looks.append(seen.raw)
    return _whole_object(generator) if all(a != b for a, b in pairwise(looks)) else None


def _object_in_place(generator: Any, end: int) -> Any:
    header = object.__basicsize__
    return _edge_view(id(generator) + header, type(generator).__basicsize__ - header, end)


def _twister_in_place(source: Any, end: int) -> Any:
    return _edge_view(source.ctypes.state_address, MERSENNE_TWISTER_BYTES, end)


def _whole_object(generator: Any) -> Any:
    header = object.__basicsize__
    size = type(generator).__basicsize__ - header
    return (ctypes.c_char * size).from_address(id(generator) + header)


def _edge_view(address: int, size: int, end: int) -> Any:
    start = address if end == 0 else address + size - VIEWED_BYTES
    return (ctypes.c_char * VIEWED_BYTES).from_address(start)


def _moves(view: Any, draw: Callable[[], object]) -> bool:
    """Return whether a view differs after every draw, for more draws than the generator's words."""
    seen = {view.raw}
    for _ in range(1400):
        draw()
        seen.add(view.raw)
    return len(seen) == 1401


# One of each per process, as there is one of each generator.
_python_stream = _PythonStream()
_numpy_stream = _NumpyStream()

HostState = tuple[Any, State, State]


class _HostStreams:
    """Both streams at once, which mostly are where they were."""

    def __init__(self) -> None:
        self._last: HostState = (None, (None, None), (None, None))

    def capture(self) -> HostState:
        """Return a mark of both, and their states."""
        mark = self._mark()
        if mark is None or mark != self._last[0]:
            self._last = (mark, _python_stream.capture(), _numpy_stream.capture())
        return self._last

    def restore(self, state: HostState) -> None:
        """Restore the states of both."""
        mark = self._mark()
        if mark is None or mark != state[0]:
            _python_stream.restore(state[1])
            _numpy_stream.restore(state[2])

    @staticmethod
    def _mark() -> Any:
        """Return the marks of both, read several times a step without a call for each."""
        python, numpy = _python_stream, _numpy_stream
        if numpy.generator._bit_generator is not numpy.source:
            numpy.look_again()
        if python.words is None or numpy.words is None:
            return None
        return (
            python.words.raw,
            python.generator.gauss_next,
            numpy.words.raw,
            numpy.gaussian.raw,
        )


_host_streams = _HostStreams()
