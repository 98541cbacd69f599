"""Loggers: the destinations of the numbers of a run."""

from .base import Logger, flatten_stats, sentence
from .files import CSVLogger, JSONLinesLogger
from .run_logger import RunLogger, console, make_run_logger
from .tensorboard import TensorBoardLogger
from .weights_and_biases import WandBLogger

__all__ = [
    "CSVLogger",
    "JSONLinesLogger",
    "Logger",
    "RunLogger",
    "TensorBoardLogger",
    "WandBLogger",
    "console",
    "flatten_stats",
    "make_run_logger",
    "sentence",
]
