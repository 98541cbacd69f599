"""The base class of loggers, and the conversion of values to numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class Logger(ABC):
    """Receives numbers during a run. Derive from it and define :meth:`log`; an object is given as
    ``EngineConfig(logger_type=...)``, alone or beside others.

    In a program of several processes the first one's is used. A run that is resumed writes the
    records after its checkpoint again; :meth:`position` and :meth:`resume_from` are for a logger
    that can remove those of the first time.
    """

    @abstractmethod
    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        """Record the numbers ``stats`` of ``tag``, which is a problem's name, ``"validation"`` or a
        hook's own, at ``step``."""

    def position(self) -> dict[str, Any]:
        """Write pending records and return the position of their end, to be saved with a run:
        numbers, text, and lists and dictionaries of these."""
        return {}

    def resume_from(self, position: Mapping[str, Any]) -> None:  # noqa: B027 (none to be found)
        """Remove the records after a position from :meth:`position`, and continue there. Called
        before the first record of a run that is resumed."""

    def close(self) -> None:  # noqa: B027 (a logger may have nothing to write)
        """Write pending records. Called at the end of ``engine.run()``, also by an exception;
        logging may continue afterwards."""


class FolderLogger(Logger):
    """Writes into the folder of a run.

    Args:
        folder: Returns the folder; called at the first record.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder


def flatten_stats(stats: Mapping[str, Any]) -> dict[str, float]:
    """Turn values to be logged into plain numbers.

    Tensors of one element become numbers (this waits for the device), longer ones and sequences
    become ``key_0, key_1, …``, nested mappings ``key_inner``. Other values are left out.
    """
    flat: dict[str, float] = {}
    for key, given in stats.items():
        value = _plain(given)
        if isinstance(value, Mapping):
            inner: Mapping[str, Any] = {f"{key}_{k}": v for k, v in value.items()}
        elif isinstance(value, (list, tuple)):
            inner = {f"{key}_{i}": v for i, v in enumerate(value)}
        else:
            if isinstance(value, (int, float)) or hasattr(value, "__float__"):
                flat[str(key)] = float(value)
            continue
        flat.update(flatten_stats(inner))
    return flat


def _plain(value: Any) -> Any:
    """Turn tensors and arrays into numbers, or into lists when they hold more than one."""
    if isinstance(value, Tensor):
        value = value.detach()
    elif not hasattr(value, "tolist"):
        return value
    return value.reshape(()).tolist() if math.prod(value.shape) == 1 else value.tolist()


def sentence(stats: Mapping[str, float]) -> str:
    """Return values by name as one line of text."""
    return " || ".join(f"{name}: {value:.6g}" for name, value in stats.items())
