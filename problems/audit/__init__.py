"""Checks of a hypergradient against exact ones, on the user's own program and batch."""

from .auditor import Auditor
from .report import Agreement, HypergradientReport

__all__ = ["Agreement", "Auditor", "HypergradientReport"]
