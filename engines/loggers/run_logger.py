"""The logger of a run: messages to the console, numbers to every configured logger."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from torch import Tensor
from tqdm import tqdm

from .base import Logger, flatten_stats
from .files import CSVLogger, JSONLinesLogger
from .tensorboard import TensorBoardLogger
from .weights_and_biases import WandBLogger

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    # Subscriptable at run time only from Python 3.11 on.
    _StreamHandler = logging.StreamHandler


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
        below ``log_dir``, all loggers do, with a warning.
        """
        self._tags = set(position.get("tags", ()))
        self._kept = {tag: (stats, step) for tag, stats, step in position.get("kept", ())}
        if self._folder is None or position["folder"] is None:
            return
        if not self._folder.go_on_in(position["folder"]):
            self._tags.clear()
            self.warning(
                f"The log folder {position['folder']!r} of the resumed run is not below "
                f"log_dir={str(self._folder.parent)!r} any more; a new folder is used."
            )
            return
        saved = dict(position["loggers"])
        for logger in self.loggers:
            if type(logger).__name__ in saved:
                logger.resume_from(saved[type(logger).__name__])

    def close(self) -> None:
        """Write pending records."""
        for logger in self.loggers:
            logger.close()


def make_run_logger(types: Sequence[str], log_dir: str | os.PathLike[str]) -> RunLogger:
    """Build the loggers of ``EngineConfig(logger_type=...)``; files share one folder per run."""
    folder = RunFolder(Path(log_dir))
    makers: dict[str, Callable[[Callable[[], Path]], Logger]] = {
        "csv": CSVLogger,
        "jsonl": JSONLinesLogger,
        "tensorboard": TensorBoardLogger,
        "wandb": WandBLogger,
    }
    return RunLogger([makers[name](folder) for name in types if name != "none"], folder)


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


class _StandardOutput(_StreamHandler):
    """Writes to whatever ``sys.stdout`` is at the time, so that redirection works."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        # A progress bar is taken away and drawn again below the message.
        with tqdm.external_write_mode(file=sys.stdout) if tqdm._instances else nullcontext():
            super().emit(record)


def console() -> logging.Logger:
    """Return the logger ``"metaweight"``; it writes to standard output unless set up before."""
    logger = logging.getLogger("metaweight")
    if not logger.handlers and not logging.getLogger().handlers:
        handler = _StandardOutput()
        handler.setFormatter(
            logging.Formatter("[%(asctime)s] [%(levelname)s] %(message)s", "%Y-%m-%d %H:%M:%S")
        )
        logger.addHandler(handler)
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return logger
