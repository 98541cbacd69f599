"""Loggers: the destinations of the numbers of a run."""

from .base import Logger, flatten_stats, sentence
from .console import console
from .files import CSVLogger, JSONLinesLogger
from .mlflow import MLflowLogger
from .run_logger import MAKERS, RunLogger, make_run_logger
from .tensorboard import TensorBoardLogger
from .weights_and_biases import WandBLogger

__all__ = [
    "MAKERS",
    "CSVLogger",
    "JSONLinesLogger",
    "Logger",
    "MLflowLogger",
    "RunLogger",
    "TensorBoardLogger",
    "WandBLogger",
    "console",
    "flatten_stats",
    "make_run_logger",
    "sentence",
]
