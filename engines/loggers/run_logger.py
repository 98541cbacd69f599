"""The logger of a run: messages to the console, numbers to every logger asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

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
        loggers: Where numbers go.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = tuple(loggers)
        self._console = console()

    def log(
        self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None
    ) -> None:
        """Record numbers with every logger."""
        if not self.loggers or not stats:
            return
        flat = flatten_stats(stats)
        for logger in self.loggers:
            logger.log(flat, tag or "run", 0 if step is None else step)

    def debug(self, message: str, *args: Any) -> None:
        """Say something of interest to a developer."""
        self._console.debug(message, *args)

    def info(self, message: str, *args: Any) -> None:
        """Say something."""
        self._console.info(message, *args)

    def warning(self, message: str, *args: Any) -> None:
        """Say that something may be wrong."""
        self._console.warning(message, *args)

    def error(self, message: str, *args: Any) -> None:
        """Say that something is wrong."""
        self._console.error(message, *args)

    def close(self) -> None:
        """Write out what is pending."""
        for logger in self.loggers:
            logger.close()


def make_run_logger(types: Sequence[str], log_dir: str | os.PathLike[str]) -> RunLogger:
    """Build the loggers of ``EngineConfig(logger_type=...)``; files share one folder per run."""
    folder = _RunFolder(Path(log_dir))
    makers: dict[str, Callable[[Callable[[], Path]], Logger]] = {
        "csv": CSVLogger,
        "jsonl": JSONLinesLogger,
        "tensorboard": TensorBoardLogger,
        "wandb": WandBLogger,
    }
    return RunLogger([makers[name](folder) for name in types if name != "none"])


class _RunFolder:
    """A new folder named by the time, made when it is first needed."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._path: Path | None = None

    def __call__(self) -> Path:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        number = 0
        while self._path is None:
            path = self._parent / (stamp if number == 0 else f"{stamp}-{number}")
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
