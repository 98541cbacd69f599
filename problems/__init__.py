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
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    Neumann,
    Product,
    Reweighting,
    Status,
    Unroll,
)
from .implicit import ImplicitProblem
from .iterative import IterativeProblem
from .preparation import check_hypergradients, place_in_graph, prepare
from .problem import GraphPosition, Problem
from .reweighted import ReweightedProblem
from .state import Snapshot
from .unrolling import apply_initial_parameters

__all__ = [
    "SAMA",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "DataError",
    "FiniteDifference",
    "GraphError",
    "GraphPosition",
    "Hypergradient",
    "HypergradientError",
    "ImplicitProblem",
    "IterativeProblem",
    "LossError",
    "MetaweightError",
    "Neumann",
    "Problem",
    "Product",
    "ReweightedProblem",
    "Reweighting",
    "Snapshot",
    "Status",
    "StepResult",
    "Unroll",
    "apply_initial_parameters",
    "check_hypergradients",
    "descend",
    "place_in_graph",
    "prepare",
    "redo",
    "step_scheduler",
    "waits_for_metric",
]
