"""One level of a multilevel program, and how to differentiate through it."""

from .batch_digest import batch_digest, not_finite_in
from .config import Config
from .dependence import expect_dependence
from .descent import descend, leave_out
from .errors import (
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
from .finiteness import Finiteness, finiteness
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
from .loader_position import keeps_its_place, length_of
from .names import Names
from .ownership import require_own_parameters
from .partial import LastLayers, ParameterSelection, SampledLayers
from .plain_data import from_plain, to_plain
from .precision import take_precision
from .preparation import check_hypergradients, place_in_graph, prepare, prepare_recording
from .problem import GraphPosition, Problem
from .problem_state import (
    form_of,
    load_problem,
    load_surroundings,
    problem_to_plain,
    require_same_form,
    require_same_lengths,
)
from .random_streams import RandomState, reseed
from .redo import redo, redo_or_keep
from .reduction import Reduction
from .reweighted import ReweightedProblem
from .scheduling import step_scheduler, waits_for_metric
from .sharding import ShareSampler
from .state import Snapshot
from .step_result import StepResult
from .trajectory import RecordedUpdate
from .unrolling import apply_initial_parameters, moves_at_start, owns_start, twin_of

__all__ = [
    "SAMA",
    "Agreement",
    "Auditor",
    "CheckpointError",
    "Config",
    "ConfigurationError",
    "ConjugateGradient",
    "DamagedCheckpointError",
    "DataError",
    "FiniteDifference",
    "Finiteness",
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
    "Names",
    "Neumann",
    "NonFiniteError",
    "Nystrom",
    "ParameterSelection",
    "Penalty",
    "Problem",
    "Product",
    "RandomState",
    "RecordedUpdate",
    "Reduction",
    "Reinforce",
    "ReweightedProblem",
    "Reweighting",
    "SampledLayers",
    "ShareSampler",
    "Snapshot",
    "Status",
    "StepResult",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
    "apply_initial_parameters",
    "batch_digest",
    "check_hypergradients",
    "descend",
    "expect_dependence",
    "finiteness",
    "form_of",
    "from_plain",
    "keeps_its_place",
    "leave_out",
    "length_of",
    "load_problem",
    "load_surroundings",
    "moves_at_start",
    "not_finite_in",
    "owns_start",
    "place_in_graph",
    "prepare",
    "prepare_recording",
    "problem_to_plain",
    "redo",
    "redo_or_keep",
    "require_own_parameters",
    "require_same_form",
    "require_same_lengths",
    "reseed",
    "step_scheduler",
    "take_precision",
    "to_plain",
    "twin_of",
    "waits_for_metric",
]
