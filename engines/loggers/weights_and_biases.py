"""Logging to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaweight.problems import ConfigurationError

from .base import Logger
from .console import console


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
        self._records: int | None = None
        self._is_resumed = False
        self._mark: dict[str, int] = {}

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        if self._wandb.run is None:
            self._begin()
        values: dict[str, float] = {f"{tag}/{name}": value for name, value in stats.items()}
        self._wandb.log({**values, **self._mark, "global_step": step})

    def position(self) -> dict[str, Any]:
        """Return the id of the wandb run, if this logger has started it, and its records."""
        if self._own_run is not None:
            self._records = self._own_run.step
        return {"run": self._earlier, "records": self._records, **self._mark}

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Continue that run, rewound to the position.

        Where W&B does not rewind it, which it does for accounts that have asked for that, the
        records of later steps remain; those made from then on have ``resumed``, the number of such
        resumptions, and a warning says so.
        """
        self.close()
        self._earlier, self._records = position["run"], position.get("records")
        self._mark = {"resumed": position["resumed"]} if "resumed" in position else {}
        self._is_resumed = self._earlier is not None

    def close(self) -> None:
        if self._own_run is not None:
            self._records = self._own_run.step
            self._own_run.finish()
            self._own_run = None

    def _begin(self) -> None:
        rewound = self._rewound() if self._is_resumed else None
        if rewound is None:
            go_on = {} if self._earlier is None else {"id": self._earlier, "resume": "allow"}
            rewound = self._start(**go_on)
        self._own_run, self._is_resumed = rewound, False
        self._earlier = getattr(rewound, "id", None)

    def _rewound(self) -> Any:
        reason = "the checkpoint does not say to where"
        if self._records:
            try:
                return self._start(resume_from=f"{self._earlier}?_step={self._records - 1}")
            except (self._wandb.Error, TypeError) as error:
                reason = str(error)
        self._mark = {"resumed": self._mark.get("resumed", 0) + 1}
        console().warning(
            f"W&B does not rewind run {self._earlier} ({reason}). Its records from after the "
            f"checkpoint remain; those of the resumed run have resumed={self._mark['resumed']}."
        )
        return None

    def _start(self, **settings: str) -> Any:
        return self._wandb.init(project="metaweight", dir=str(self._folder()), **settings)
