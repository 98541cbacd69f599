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
from .hypergradients.product import Approximation, ConvergedSolve
from .levels import ImplicitProblem, IterativeProblem
from .problem import Problem
from .products.curvature import curvature
from .products.evaluation import Evaluation
from .products.linear_system import LinearSystem
from .recording.recorded_steps import Recording
from .reweighted import ReweightedProblem
from .step.lower_view import lower_view

__all__ = [
    "MASOBA",
    "SABA",
    "SAMA",
    "SOBA",
    "Agreement",
    "AmIGO",
    "Approximation",
    "CheckpointError",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "ConvergedSolve",
    "DamagedCheckpointError",
    "DataError",
    "Evaluation",
    "FiniteDifference",
    "GraphError",
    "Hypergradient",
    "HypergradientError",
    "HypergradientReport",
    "ImplicitProblem",
    "IterativeProblem",
    "LastLayers",
    "LinearSystem",
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
    "Recording",
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
    "curvature",
    "last_loss",
    "lower_view",
]
