"""One level of a multilevel program, and how to differentiate through it."""

from .audit import Agreement, HypergradientReport
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
    MASOBA,
    SABA,
    SAMA,
    SOBA,
    AmIGO,
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    LowerProblem,
    Neumann,
    Nystrom,
    Penalty,
    Product,
    Reinforce,
    Reweighting,
    Status,
    StocBiO,
    Unroll,
    ValueHypergradient,
    ZeroOrder,
    last_loss,
)
from .hypergradients.parameter_selection import LastLayers, ParameterSelection, SampledLayers
from .levels import ImplicitProblem, IterativeProblem
from .problem import Problem
from .reweighted import ReweightedProblem
from .step.lower_view import lower_view

__all__ = [
    "MASOBA",
    "SABA",
    "SAMA",
    "SOBA",
    "Agreement",
    "AmIGO",
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
    "LowerProblem",
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
    "StocBiO",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
    "last_loss",
    "lower_view",
]
