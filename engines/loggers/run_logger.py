"""The logger of a run: messages to the console, numbers to every configured logger."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from .base import FolderLogger, Logger, flatten_stats
from .console import console
from .files import CSVLogger, JSONLinesLogger
from .mlflow import MLflowLogger
from .tensorboard import TensorBoardLogger
from .weights_and_biases import WandBLogger


class RunLogger:
    """Messages for people (``info``, ``warning``, …) and numbers for loggers (``log``).

    Args:
        loggers: Loggers that receive the numbers.
        folder: The folder that file loggers share, if there are any.
        quiet: Log no messages but errors.
    """

    def __init__(
        self,
        loggers: Sequence[Logger] = (),
        folder: RunFolder | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.loggers = tuple(loggers)
        self._tags: set[str] = set()
        self._kept: dict[str, tuple[Mapping[str, Any], int | None]] = {}
        self._folder = folder
        self._console = console()
        if quiet:
            self._console = self._console.getChild("other_process")
            self._console.setLevel(logging.ERROR)

    def log(
        self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None
    ) -> None:
        """Record numbers with every logger."""
        if not self.loggers or not stats:
            return
        self._tags.add(tag or "run")
        flat = flatten_stats(stats)
        for logger in self.loggers:
            logger.log(flat, tag or "run", 0 if step is None else step)

    def keep(self, stats: Mapping[str, Any], tag: str, step: int | None) -> None:
        """Keep numbers for :meth:`log_kept`, in place of those of the tag kept before. Tensors are
        not read yet."""
        if tag not in self._tags:
            detached = {k: v.detach() if isinstance(v, Tensor) else v for k, v in stats.items()}
            self._kept[tag] = (detached, step)

    def log_kept(self, known: Collection[str]) -> None:
        """Record the numbers kept of tags without any, unless tags beside those known have some."""
        if self._tags <= set(known):
            for tag, (stats, step) in self._kept.items():
                if tag not in self._tags:
                    self.log(stats, tag, step)

    def debug(self, message: str, *args: Any) -> None:
        """Log a message for developers."""
        self._console.debug(message, *args)

    def info(self, message: str, *args: Any) -> None:
        """Log a message."""
        self._console.info(message, *args)

    def warning(self, message: str, *args: Any) -> None:
        """Log a warning."""
        self._console.warning(message, *args)

    def error(self, message: str, *args: Any) -> None:
        """Log an error."""
        self._console.error(message, *args)

    def position(self) -> dict[str, Any]:
        """Return the position of every logger, to be saved with a run."""
        kept = [[tag, flatten_stats(stats), step] for tag, (stats, step) in self._kept.items()]
        return {
            "folder": None if self._folder is None else self._folder.name,
            **({"tags": sorted(self._tags)} if self._tags else {}),
            **({"kept": kept} if kept else {}),
            "loggers": [[type(logger).__name__, logger.position()] for logger in self.loggers],
        }

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Continue in the folder of a saved run, without the records made after it was saved.

        A logger that the saved run did not have starts a new record. If the folder is no longer
        below ``log_dir``, those that write there do, with a warning.
        """
        self._tags = set(position.get("tags", ()))
        self._kept = {tag: (stats, step) for tag, stats, step in position.get("kept", ())}
        name, has_folder = position["folder"], False
        if self._folder is not None and name is not None:
            has_folder = self._folder.go_on_in(name)
            if not has_folder:
                self._tags.clear()
                self.warning(
                    f"The log folder {name!r} of the resumed run is not below "
                    f"log_dir={str(self._folder.parent)!r} any more; a new folder is used."
                )
        saved: dict[str, list[Any]] = {}
        for kind, found in position["loggers"]:
            saved.setdefault(kind, []).append(found)
        for logger in self.loggers:
            positions = saved.get(type(logger).__name__)
            if positions:
                found = positions.pop(0)
                if has_folder or not isinstance(logger, FolderLogger):
                    logger.resume_from(found)

    def close(self) -> None:
        """Write pending records."""
        for logger in self.loggers:
            logger.close()


MAKERS: dict[str, Callable[[Callable[[], Path]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandBLogger,
    "mlflow": lambda folder: MLflowLogger(),
    "csv": CSVLogger,
    "jsonl": JSONLinesLogger,
}
"""How loggers that are asked for by name are made, given the folder of the run."""


def make_run_logger(given: Sequence[str | Logger], log_dir: str | os.PathLike[str]) -> RunLogger:
    """Build the loggers of ``EngineConfig(logger_type=...)``; files share one folder per run."""
    folder = RunFolder(Path(log_dir))
    loggers = [
        each if isinstance(each, Logger) else MAKERS[each](folder)
        for each in given
        if each != "none"
    ]
    return RunLogger(loggers, folder)


class RunFolder:
    """A new folder named by the time, made when it is first needed.

    Args:
        parent: The folder to make it in.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._path: Path | None = None

    @property
    def name(self) -> str | None:
        """The folder's name, once it has been made."""
        return None if self._path is None else self._path.name

    def go_on_in(self, name: str) -> bool:
        """Use an existing folder; return whether it exists."""
        path = self.parent / name
        # With a name that leads to another folder, files there must not be cut.
        if name in ("", ".", "..") or Path(name).name != name or not path.is_dir():
            return False
        self._path = path
        return True

    def __call__(self) -> Path:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        number = 0
        while self._path is None:
            path = self.parent / (stamp if number == 0 else f"{stamp}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                self._path = path
        return self._path
