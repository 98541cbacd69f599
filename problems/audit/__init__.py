"""Whether a hypergradient is what it is meant to be, seen on the user's own program and batch."""

from .auditor import Auditor
from .report import Agreement, HypergradientReport

__all__ = ["Agreement", "Auditor", "HypergradientReport"]
