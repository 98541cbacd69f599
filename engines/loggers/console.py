"""Messages for people, on standard output."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    # Subscriptable at run time only from Python 3.11 on.
    _StreamHandler = logging.StreamHandler


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
