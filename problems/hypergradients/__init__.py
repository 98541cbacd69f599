"""Ways of differentiating through a lower problem, one algorithm a file."""

from .audit import Agreement, Auditor, HypergradientReport
from .base import Hypergradient, Product, Status
from .conjugate_gradient import ConjugateGradient
from .finite_difference import FiniteDifference
from .neumann import Neumann
from .nystrom import Nystrom
from .penalty import Penalty
from .reinforce import Reinforce
from .resolve import resolve
from .reweighting import Reweighting
from .sama import SAMA
from .unroll import Unroll
from .value import ValueHypergradient
from .zero_order import ZeroOrder

__all__ = [
    "SAMA",
    "Agreement",
    "Auditor",
    "ConjugateGradient",
    "FiniteDifference",
    "Hypergradient",
    "HypergradientReport",
    "Neumann",
    "Nystrom",
    "Penalty",
    "Product",
    "Reinforce",
    "Reweighting",
    "Status",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
    "resolve",
]
