"""Algorithms that differentiate through a lower problem, one per file."""

from .amigo import AmIGO
from .base import Hypergradient, LowerProblem, last_loss
from .conjugate_gradient import ConjugateGradient
from .finite_difference import FiniteDifference
from .masoba import MASOBA
from .neumann import Neumann
from .nystrom import Nystrom
from .penalty import Penalty
from .product import Product, Status
from .reinforce import Reinforce
from .resolve import resolve
from .reweighting import Reweighting
from .saba import SABA
from .sama import SAMA
from .soba import SOBA
from .stocbio import StocBiO
from .unroll import Unroll
from .value import ValueHypergradient
from .zero_order import ZeroOrder

__all__ = [
    "MASOBA",
    "SABA",
    "SAMA",
    "SOBA",
    "AmIGO",
    "ConjugateGradient",
    "FiniteDifference",
    "Hypergradient",
    "LowerProblem",
    "Neumann",
    "Nystrom",
    "Penalty",
    "Product",
    "Reinforce",
    "Reweighting",
    "Status",
    "StocBiO",
    "Unroll",
    "ValueHypergradient",
    "ZeroOrder",
    "last_loss",
    "resolve",
]
