"""Bilevel meta-learning on PyTorch: a graph of problems, hypergradients, learned weights.

The pieces most programs need are importable from here; see ``metaweight.weighting``,
``metaweight.data``, ``metaweight.models`` and ``metaweight.noise`` for the rest.
"""

from ._version import __version__
from .engines import EarlyStopping, Engine, EngineConfig, Env, Hook, ProgressBar
from .problems import (
    SAMA,
    Config,
    ConfigurationError,
    ConjugateGradient,
    DataError,
    FiniteDifference,
    GraphError,
    Hypergradient,
    HypergradientError,
    ImplicitProblem,
    IterativeProblem,
    LossError,
    MetaweightError,
    Neumann,
    Problem,
    Product,
    ReweightedProblem,
    Reweighting,
    Status,
    Unroll,
)

__all__ = [
    "SAMA",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "DataError",
    "EarlyStopping",
    "Engine",
    "EngineConfig",
    "Env",
    "FiniteDifference",
    "GraphError",
    "Hook",
    "Hypergradient",
    "HypergradientError",
    "ImplicitProblem",
    "IterativeProblem",
    "LossError",
    "MetaweightError",
    "Neumann",
    "Problem",
    "Product",
    "ProgressBar",
    "ReweightedProblem",
    "Reweighting",
    "Status",
    "Unroll",
    "__version__",
]
