"""Find the algorithm that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..base.settings import LeftOutFloat
from .amigo import AmIGO
from .base import Hypergradient
from .conjugate_gradient import ConjugateGradient
from .finite_difference import FiniteDifference
from .masoba import MASOBA
from .neumann import Neumann
from .nystrom import Nystrom
from .penalty import Penalty
from .registry import load_registered
from .reinforce import Reinforce
from .reweighting import Reweighting
from .saba import SABA
from .sama import SAMA
from .soba import SOBA
from .stocbio import StocBiO
from .unroll import Unroll
from .zero_order import ZeroOrder

if TYPE_CHECKING:
    from ..config import Config

BY_NAME: Mapping[str, Callable[[Config], Hypergradient]] = {
    "darts": lambda c: FiniteDifference(alpha=c.darts_alpha, multitask=c.darts_multitask),
    "reweighting": lambda c: Reweighting(alpha=c.darts_alpha),
    "unroll": lambda c: Unroll(),
    "t1t2": lambda c: Unroll(steps=1),
    "sama": lambda c: SAMA(
        alpha=None if isinstance(c.sama_adam_alpha, LeftOutFloat) else c.sama_adam_alpha,
        multitask=c.sama_multitask,
    ),
    "neumann": lambda c: Neumann(iterations=c.neumann_iterations, alpha=c.neumann_alpha),
    "nystrom": lambda c: Nystrom(),
    "cg": lambda c: ConjugateGradient(iterations=c.cg_iterations),
    "soba": lambda c: SOBA(),
    "saba": lambda c: SABA(),
    "masoba": lambda c: MASOBA(),
    "amigo": lambda c: AmIGO(),
    "stocbio": lambda c: StocBiO(),
    "penalty": lambda c: Penalty(),
    "zero_order": lambda c: ZeroOrder(),
    "reinforce": lambda c: Reinforce(),
}


def resolve(config: Config) -> Hypergradient:
    """Return the algorithm of ``config.type``, with the settings of the other fields."""
    if isinstance(config.type, Hypergradient):
        return config.type
    make = BY_NAME.get(config.type)
    return load_registered(config.type) if make is None else make(config)
