"""From a configuration to the algorithm it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from .base import Hypergradient
from .conjugate_gradient import ConjugateGradient
from .finite_difference import FiniteDifference
from .neumann import Neumann
from .reweighting import Reweighting
from .sama import SAMA

if TYPE_CHECKING:
    from ..config import Config


def resolve(config: Config) -> Hypergradient:
    """Return the algorithm ``config.type`` stands for, with the settings of the flat fields."""
    if isinstance(config.type, Hypergradient):
        return config.type
    if config.type == "darts":
        return FiniteDifference(alpha=config.darts_alpha, multitask=config.darts_multitask)
    if config.type == "reweighting":
        return Reweighting(alpha=config.darts_alpha)
    if config.type == "sama":
        return SAMA(alpha=config.sama_adam_alpha, multitask=config.sama_multitask)
    if config.type == "neumann":
        return Neumann(iterations=config.neumann_iterations, alpha=config.neumann_alpha)
    if config.type == "cg":
        return ConjugateGradient(iterations=config.cg_iterations)
    raise ConfigurationError(f"Config(type={config.type!r}) names no hypergradient.")
