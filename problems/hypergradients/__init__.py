"""Ways of differentiating through a lower problem, one algorithm a file."""

from .base import Hypergradient, Product, Status
from .conjugate_gradient import ConjugateGradient
from .finite_difference import FiniteDifference
from .neumann import Neumann
from .resolve import resolve
from .reweighting import Reweighting
from .sama import SAMA
from .unroll import Unroll

__all__ = [
    "SAMA",
    "ConjugateGradient",
    "FiniteDifference",
    "Hypergradient",
    "Neumann",
    "Product",
    "Reweighting",
    "Status",
    "Unroll",
    "resolve",
]
