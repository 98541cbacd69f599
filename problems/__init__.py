"""One level of a multilevel program, and how to differentiate through it."""

from .config import Config
from .descent import StepResult, descend, redo, step_scheduler, waits_for_metric
from .errors import (
    ConfigurationError,
    DataError,
    GraphError,
    HypergradientError,
    LossError,
    MetaweightError,
)
from .hypergradients import (
    SAMA,
    Agreement,
    Auditor,
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
from .implicit import ImplicitProblem
from .iterative import IterativeProblem
from .partial import LastLayers, ParameterSelection, SampledLayers
from .preparation import check_hypergradients, place_in_graph, prepare, prepare_recording
from .problem import GraphPosition, Problem
from .reweighted import ReweightedProblem
from .state import Snapshot
from .unrolling import apply_initial_parameters

__all__ = [
    "SAMA",
    "Agreement",
    "Auditor",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "DataError",
    "FiniteDifference",
    "GraphError",
    "GraphPosition",
    "Hypergradient",
    "HypergradientError",
    "HypergradientReport",
    "ImplicitProblem",
    "IterativeProblem",
    "LastLayers",
    "LossError",
    "MetaweightError",
    "Neumann",
    "Nystrom",
    "ParameterSelection",
    "Penalty",
    "Problem",
    "Product",
    "Reinforce",
    "ReweightedProblem",
    "Reweighting",
    "SampledLayers",
    "Snapshot",
    "Status",
    "StepResult",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
    "apply_initial_parameters",
    "check_hypergradients",
    "descend",
    "place_in_graph",
    "prepare",
    "prepare_recording",
    "redo",
    "step_scheduler",
    "waits_for_metric",
]
