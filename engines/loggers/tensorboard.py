"""Logging to TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaweight.problems import ConfigurationError

from .base import FolderLogger


class TensorBoardLogger(FolderLogger):
    """Write scalars ``tag/name`` as TensorBoard event files.

    Args:
        folder: Returns the folder to write to; called at the first record.

    Raises:
        ConfigurationError: When the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                "logger_type='tensorboard' needs the package tensorboard; "
                "pip install 'metaweight[tensorboard]', or choose 'csv' or 'jsonl'."
            ) from error
        super().__init__(folder)
        self._make: Callable[..., Any] = SummaryWriter
        self._writer: Any = None
        self._begun = False

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        if self._writer is None:
            self._writer = self._make(log_dir=str(self._folder()))
            self._begun = True
        for name, value in stats.items():
            self._writer.add_scalar(f"{tag}/{name}", value, step)

    def position(self) -> dict[str, Any]:
        """Return the event files and their lengths."""
        if self._writer is not None:
            self._writer.flush()
        if self._writer is None and not self._begun:
            return {"files": {}}
        return {"files": {f.name: f.stat().st_size for f in self._event_files()}}

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Cut event files to their saved lengths, and remove those started later.

        Further records go to new files beside them, which TensorBoard reads as one run. Its
        ``purge_step``, which hides the events after a step, cannot be used here, since each problem
        counts its own steps.
        """
        self.close()
        kept = position["files"]
        for file in self._event_files():
            if file.name not in kept:
                file.unlink()
            elif file.stat().st_size > kept[file.name]:
                os.truncate(file, kept[file.name])
        self._begun = bool(kept)

    def _event_files(self) -> list[Path]:
        return sorted(self._folder().glob("events.out.tfevents.*"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
