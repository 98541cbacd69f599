"""The graph of problems and the loop that runs it."""

from .engine import Engine
from .hooks.adaptive_interval import AdaptiveInterval
from .hooks.base import Hook
from .hooks.early_stopping import EarlyStopping
from .hooks.hypergradient_check import HypergradientCheck
from .hooks.non_finite import NonFinite
from .hooks.norm_logger import NormLogger
from .hooks.progress import ProgressBar, ProgressLine
from .hooks.variance_reduction import VarianceReduction
from .hooks.weight_collapse import WeightCollapse
from .loggers import Logger, RunLogger
from .program.config import EngineConfig
from .program.env import Env
from .program.graph import Graph
from .program.instructions import Action, Instruction, Rhythm
from .program.precision import fastest_precision
from .program.schedule import Schedule

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
    "NonFinite",
    "NormLogger",
    "ProgressBar",
    "ProgressLine",
    "Rhythm",
    "RunLogger",
    "Schedule",
    "VarianceReduction",
    "WeightCollapse",
    "fastest_precision",
]
