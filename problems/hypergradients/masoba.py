"""SOBA with a moving average of the upper direction.

With the product ``p = -(∂²L/∂θ∂w) x`` of :mod:`~metaweight.problems.hypergradients.soba`, ::

    h  ←  momentum h + (1 - momentum) p

The average damps what the batches change from step to step, so that the upper step size need not
fall faster than the lower one.

Source: Chen, Xiao, Balasubramanian, "Optimal algorithms for stochastic bilevel optimization under
relaxed smoothness conditions" (MA-SOBA), 2023 (arXiv:2306.12067). There the average includes the
direct gradient ``∂F/∂θ``, which the library adds here, and the upper step takes the ``h`` of the
step before. Where the direct gradient matters, use :class:`SOBA` and an upper
``SGD(momentum=m, dampening=m)``, which averages both. Order and step sizes are as for SOBA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.settings import require_number
from .base import LowerProblem
from .product import Product
from .soba import SOBA


@dataclass(frozen=True)
class MASOBA(SOBA):
    """``h``, the moving average of the products of :class:`SOBA`.

    Args:
        lr: Step size of ``x``. It diverges when ``lr`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.
        batches: ``"recorded"`` or ``"fresh"``, as for :class:`SOBA`.
        momentum: How much of ``h`` remains, in [0, 1). The first ``h`` is the first product.

    Raises:
        HypergradientError: From :meth:`vjp`, when ``x`` diverges or is not finite.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        advice = "it is the part of the average that remains"
        require_number("MASOBA", "momentum", self.momentum, below=1.0, advice=advice)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        found = super().vjp(lower, vector, upper_parameters)
        # Equal in all processes, since it is kept.
        direction = lower.mean(found.values)
        before = (lower.state or {}).get("direction", direction)
        if [t.shape for t in before] == [t.shape for t in direction]:
            change = vectors.subtract(direction, before)
            direction = vectors.add(before, change, alpha=1.0 - self.momentum)
        return Product(direction, found.status, {**(found.state or {}), "direction": direction})
