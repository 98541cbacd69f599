"""Loggers that append to a text file: CSV for tables, JSON lines for programs."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from .base import FolderLogger


class _FileLogger(FolderLogger):
    def __init__(self, folder: Callable[[], Path], name: str) -> None:
        super().__init__(folder)
        self._name = name
        self._file: TextIOWrapper | None = None
        self._written = 0

    def position(self) -> dict[str, Any]:
        """Return the length of the file."""
        if self._file is None:
            return {"bytes": self._written}
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Cut the file to a saved length."""
        self.close()
        path = self._folder() / self._name
        length = int(position["bytes"])
        if path.exists() and path.stat().st_size > length:
            os.truncate(path, length)
        self._written = length

    def _open(self) -> TextIOWrapper:
        if self._file is None:
            path = self._folder() / self._name
            self._file = path.open("a", newline="", encoding="utf-8")
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._written = self._file.tell()
            self._file.close()
            self._file = None


class CSVLogger(_FileLogger):
    """Append rows ``step, tag, name, value`` to ``metrics.csv``.

    Args:
        folder: Returns the folder to write to; called at the first record.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        super().__init__(folder, "metrics.csv")

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        file = self._open()
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["step", "tag", "name", "value"])
        writer.writerows([step, tag, name, value] for name, value in stats.items())
        file.flush()


class JSONLinesLogger(_FileLogger):
    """Append one object ``{"step", "tag", name: value, …}`` per record to ``metrics.jsonl``.

    Values that are not finite become ``null``, which JSON can express. A value that is itself named
    ``"step"`` or ``"tag"`` is written as ``"TAG/step"`` or ``"TAG/tag"``.

    Args:
        folder: Returns the folder to write to; called at the first record.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        super().__init__(folder, "metrics.jsonl")

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        record: dict[str, Any] = {"step": step, "tag": tag}
        for name, value in stats.items():
            own = f"{tag}/{name}" if name in ("step", "tag") else name
            record[own] = value if math.isfinite(value) else None
        file = self._open()
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
