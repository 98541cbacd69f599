"""Capture and replay of every random stream a loss may draw from.

torch (host and device), Python's ``random`` and NumPy's global generator are covered, since
augmentation code uses all three.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RandomState:
    """The state of all random streams at one moment."""

    __slots__ = ("_device", "_device_state", "_numpy", "_python", "_torch")

    def __init__(self, device: torch.device) -> None:
        self._torch: Tensor = torch.default_generator.get_state()
        self._device = device
        self._device_state: Tensor | None = (
            None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        )
        self._python = random.getstate()
        self._numpy = _numpy_stream.capture()

    def restore(self) -> None:
        """Set every stream to this state."""
        torch.default_generator.set_state(self._torch)
        if self._device_state is not None:
            torch.get_device_module(self._device).set_rng_state(self._device_state, self._device)
        random.setstate(self._python)
        _numpy_stream.restore(self._numpy)


@contextmanager
def preserved_streams(device: torch.device) -> Iterator[RandomState]:
    """Whatever is drawn inside, all streams go on afterwards as if nothing had been."""
    state = RandomState(device)
    try:
        yield state
    finally:
        state.restore()


class _NumpyStream:
    """NumPy's global generator, read in full only when it may have moved.

    Reading its state takes 60 µs, longer than a small problem's whole loss, and most losses never
    touch it. The raw words of the Mersenne twister take 1 µs to read. While they are unchanged
    nothing has been drawn, unless a cached Gaussian was pending, which can be used up without the
    words changing; then the state is read or written in full.
    """

    _WORDS = 625 * 4

    def __init__(self) -> None:
        self._last: tuple[bytes, dict[str, Any]] | None = None

    def capture(self) -> tuple[bytes, dict[str, Any]]:
        raw = self._raw()
        if self._last is None or not raw or raw != self._last[0]:
            self._last = (raw, dict(np.random.get_state(legacy=False)))
        state = self._last
        if state[1]["has_gauss"]:
            self._last = None
        return state

    def restore(self, state: tuple[bytes, dict[str, Any]]) -> None:
        raw, full = state
        if self._last is not None and raw and raw == self._raw() and not full["has_gauss"]:
            return
        np.random.set_state(full)
        self._last = None if full["has_gauss"] else state

    def _raw(self) -> bytes:
        generator = np.random.mtrand._rand._bit_generator  # type: ignore[attr-defined]
        if type(generator).__name__ != "MT19937":
            return b""
        return ctypes.string_at(generator.ctypes.state_address, self._WORDS)


# One per process, as the generator it mirrors.
_numpy_stream = _NumpyStream()
