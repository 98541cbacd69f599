"""Implicit hypergradient with one gradient step on the linear system in each upper step.

The solution ``x`` of ``(H + damping I) x = v`` is kept from step to step. With the batch of the
lower problem's last step and that of the upper problem, ::

    (dw*/dθ)ᵀ v  ≈  -(∂²L/∂θ∂w) x
    x  ←  x - lr ((H + damping I) x - v)

Both products come from one backward pass. ``x`` averages over the batches of many steps, where a
solve from zero is that of one batch, and biased by it.

Source: Dagréou, Ablin, Vaiter, Moreau, "A framework for bilevel optimization that enables
stochastic and global variance reduction algorithms", NeurIPS 2022 (arXiv:2201.13409). There the
lower problem, ``x`` and the upper problem move at once, from the same point, by step sizes that
fall together as ``1 / √t``. Here the lower problem has moved when its hypergradient is formed; the
step sizes are those of the two optimizers and their schedulers, and ``lr``, which is constant.
Their ``x`` begins at zero; this one at ``lr v``, a step further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem
from .base import LowerProblem
from .kept_solution import batches_of, require_known_batches, state_of
from .product import Product, Status
from .single_loop import SingleLoop
from .solve_advice import require_converging


@dataclass(frozen=True)
class SOBA(SingleLoop):
    """``-(∂²L/∂θ∂w) x`` with an ``x`` that moves by ``lr (v - (H + damping I) x)`` in every step.

    The host waits for the device once, at the end.

    Args:
        lr: Step size of ``x``. It diverges when ``lr`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.
        batches: ``"recorded"``: the batch of the lower problem's last step. ``"fresh"``: the next
            one of its loaders, which its parameters have not been trained on yet.

    Raises:
        HypergradientError: From :meth:`vjp`, when ``x`` diverges or is not finite.
    """

    batches: str = "recorded"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known_batches(type(self).__name__, self.batches)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        (steps,) = batches_of(lower, self.batches)
        with curvature(lower, steps) as second:
            system = LinearSystem(second, vector, self.damping)
            x = self.start(lower, system)
            answer = system.answer(x, upper_parameters)
            require_converging(self, "lr", lower, system, x, answer)
            following = vectors.add(x, answer.remainder, alpha=self.lr)
        status = Status(type(self).__name__, iterations=1, residual=answer.residual)
        return Product(answer.values, status, state_of(system, following))
