"""SOBA with less variance, by a table of what each batch gave last (SAGA).

With lower batch ``i`` and upper batch ``j``, both of a fixed division of the data, ::

    (dw*/dθ)ᵀ v  ≈  -S[∂²L_i/∂θ∂w x],    x  ←  x - lr (S[(H_i + damping I) x] - S[v_j])

where ``S[q_i] = q_i - table_i + mean(table)``, and ``q_i`` then replaces ``table_i``. Near the
solution ``S`` has no variance left, so that a constant ``lr`` converges.

Source: Dagréou, Ablin, Vaiter, Moreau, NeurIPS 2022 (arXiv:2201.13409), as for SOBA, whose notes
hold here too. There the gradients of the lower and the upper problem have tables as well, which the
hook :class:`~metaweight.engines.VarianceReduction` keeps; without it the steps of the two
optimizers have the noise of their batches. Batches are drawn uniformly there, which is left to the
loaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.settings import require_choice
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem
from ..recording.recorded_steps import Recording
from .base import LowerProblem
from .product import Product, Status
from .saga import corrected, table_for
from .single_loop import SingleLoop
from .solve_advice import require_converging

INSTEAD = "use SOBA(), which needs no table"


@dataclass(frozen=True)
class SABA(SingleLoop):
    """:class:`SOBA` with its two products and its ``v`` corrected by a table with an entry a batch.

    For the published algorithm, which converges at constant step sizes of both optimizers too, give
    the engine ``hooks=[VarianceReduction()]``: it corrects the gradients that they follow.

    Memory: ``w`` and ``θ`` for each lower batch and ``w`` for each upper one, also in checkpoints.
    Both problems have one loader of the same batches in every epoch: not shuffled, or with an
    attribute ``batch_number``. A loader that takes its place during a run starts a new table.

    Args:
        lr: Step size of ``x``. It diverges when ``lr`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.
        table: ``"batch"``: an entry for each batch.

    Raises:
        ConfigurationError: For loaders that do not say which batch they give.
        HypergradientError: From :meth:`vjp`, when ``x`` diverges or is not finite.
    """

    table: str = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("SABA", "table", self.table, ("batch",))

    def check(self, lower: LowerProblem) -> None:
        lower.require_batch_numbers("SABA", INSTEAD)

    def recording(self, lower: LowerProblem) -> Recording:
        return Recording(numbers=True)

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        with curvature(lower) as second:
            system = LinearSystem(second, vector, self.damping)
            x = self.start(lower, system)
            answer = system.answer(x, upper_parameters)
            require_converging(self, "lr", lower, system, x, answer)
        image = vectors.subtract(system.right, answer.remainder)
        below, above = lower.batch_numbers
        # What is kept is equal in all processes.
        products = [*system.unscaled(image), *lower.mean(answer.values)]
        kept = lower.state or {}
        lowers = table_for(below, kept.get("lower"), products)
        uppers = table_for(above, kept.get("upper"), x)
        if not (lowers["entries"] and uppers["entries"]):
            # A loader may have been replaced by one that shuffles.
            self.check(lower)
        products, lowers = corrected(lowers, below, products)
        v, uppers = corrected(uppers, above, system.unscaled(system.right))
        following = vectors.add(system.unscaled(x), v, alpha=self.lr)
        following = vectors.add(following, products[: len(x)], alpha=-self.lr)
        state = {"solution": following, "lower": lowers, "upper": uppers}
        status = Status("SABA", iterations=1, residual=answer.residual)
        return Product(products[len(x) :], status, state)
