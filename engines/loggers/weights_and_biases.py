"""Logging to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaweight.problems import ConfigurationError

from .base import Logger


class WandBLogger(Logger):
    """Log scalars ``tag/name`` to the current wandb run, starting one if there is none.

    Args:
        folder: Returns the folder a new run keeps its files in; called at the first record.

    Raises:
        ConfigurationError: When the package ``wandb`` is not installed.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        try:
            import wandb  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                "logger_type='wandb' needs the package wandb; pip install 'metaweight[wandb]', "
                "or choose 'tensorboard', 'csv' or 'jsonl'."
            ) from error
        self._wandb: Any = wandb
        self._folder = folder
        self._own_run: Any = None
        self._earlier: str | None = None

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        if self._wandb.run is None:
            go_on = {} if self._earlier is None else {"id": self._earlier, "resume": "allow"}
            self._own_run = self._wandb.init(project="metaweight", dir=str(self._folder()), **go_on)
            self._earlier = getattr(self._own_run, "id", None)
        values: dict[str, float] = {f"{tag}/{name}": value for name, value in stats.items()}
        self._wandb.log({**values, "global_step": step})

    def position(self) -> dict[str, Any]:
        """Return the id of the wandb run, if this logger has started it."""
        return {"run": self._earlier}

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Continue that run; its records of later steps remain, since wandb can only append."""
        self._earlier = position["run"]

    def close(self) -> None:
        if self._own_run is not None:
            self._own_run.finish()
            self._own_run = None
