"""The graph of problems and the loop that runs it."""

from .adaptive_interval import AdaptiveInterval
from .config import EngineConfig
from .early_stopping import EarlyStopping
from .engine import Engine
from .env import Env
from .graph import Graph
from .hooks import Hook
from .hypergradient_check import HypergradientCheck
from .loggers import Logger, RunLogger
from .progress import ProgressBar
from .schedule import Action, Instruction, Rhythm, Schedule

__all__ = [
    "Action",
    "AdaptiveInterval",
    "EarlyStopping",
    "Engine",
    "EngineConfig",
    "Env",
    "Graph",
    "Hook",
    "HypergradientCheck",
    "Instruction",
    "Logger",
    "ProgressBar",
    "Rhythm",
    "RunLogger",
    "Schedule",
]
