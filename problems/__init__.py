"""One level of a multilevel program, and how to differentiate through it."""

from .base.errors import (
    CheckpointError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
    GraphError,
    HypergradientError,
    LossError,
    MetaweightError,
    NonFiniteError,
)
from .base.step_result import StepResult
from .config import Config
from .hypergradients import (
    SAMA,
    Agreement,
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    HypergradientReport,
    Neumann,
    Nystrom,
    Penalty,
    Product,
    Reinforce,
    Reweighting,
    Status,
    Unroll,
    ValueHypergradient,
    ZeroOrder,
)
from .hypergradients.parameter_selection import LastLayers, ParameterSelection, SampledLayers
from .levels import ImplicitProblem, IterativeProblem
from .problem import Problem
from .reweighted import ReweightedProblem

__all__ = [
    "SAMA",
    "Agreement",
    "CheckpointError",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "DamagedCheckpointError",
    "DataError",
    "FiniteDifference",
    "GraphError",
    "Hypergradient",
    "HypergradientError",
    "HypergradientReport",
    "ImplicitProblem",
    "IterativeProblem",
    "LastLayers",
    "LossError",
    "MetaweightError",
    "Neumann",
    "NonFiniteError",
    "Nystrom",
    "ParameterSelection",
    "Penalty",
    "Problem",
    "Product",
    "Reinforce",
    "ReweightedProblem",
    "Reweighting",
    "SampledLayers",
    "Status",
    "StepResult",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
]
