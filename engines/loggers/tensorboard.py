"""Logging to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaweight.problems import ConfigurationError

from .base import Logger


class TensorBoardLogger(Logger):
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
        self._make: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        if self._writer is None:
            self._writer = self._make(log_dir=str(self._folder()))
        for name, value in stats.items():
            self._writer.add_scalar(f"{tag}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
