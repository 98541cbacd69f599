"""Implicit hypergradient with several gradient steps on the linear system, from the last solution.

The solution ``x`` of ``(H + damping I) x = v`` is kept from step to step, and the product is taken
after ``iterations`` steps, each with another batch ``i``: ::

    x  ←  x - lr ((H_i + damping I) x - v)
    (dw*/dθ)ᵀ v  ≈  -(∂²L/∂θ∂w) x

Source: Arbel, Mairal, "Amortized implicit differentiation for stochastic bilevel optimization"
(AmIGO), ICLR 2022 (arXiv:2111.14580). The lower problem's steps, which start where the last ones
ended there too, are ``Config(unroll_steps=...)`` steps of its optimizer; batch sizes, which grow
with the accuracy there, are those of its loaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..base.settings import require_count
from ..products.curvature import curvature
from ..products.linear_system import LinearSystem, products_of_one_graph
from .base import LowerProblem
from .kept_solution import batches_of, require_known_batches, state_of
from .product import Product, Status
from .single_loop import SingleLoop
from .solve_advice import require_converging


@dataclass(frozen=True)
class AmIGO(SingleLoop):
    """``-(∂²L/∂θ∂w) x`` after ``iterations`` steps of ``lr (v - (H + damping I) x)``.

    The host waits for the device once, at the end.

    Args:
        lr: Step size of ``x``. It diverges when ``lr`` exceeds ``2 / λ_max(H + damping I)``.
        damping: Added to every eigenvalue of ``H``.
        iterations: Steps of ``x`` for one product, each with its own Hessian product.
        batches: ``"fresh"``: each step, and the product after them, takes the next batch of the
            lower problem's loaders. ``"recorded"``: all take the batch of its last step.

    Raises:
        HypergradientError: From :meth:`vjp`, when ``x`` diverges or is not finite.
    """

    iterations: int = 10
    batches: str = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("AmIGO", "iterations", self.iterations, least=1)
        require_known_batches("AmIGO", self.batches)

    def passes(self, lower: LowerProblem) -> str:
        if self.batches == "recorded":
            return products_of_one_graph(self.iterations)
        return f"{self.iterations + 1} times {super().passes(lower)}"

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        fresh = self.batches == "fresh"
        batches = batches_of(lower, self.batches, self.iterations + 1 if fresh else 1)
        x: list[Tensor] = []
        for batch in batches:
            with curvature(lower, batch) as second:
                system = LinearSystem(second, vector, self.damping)
                x = x or self.start(lower, system)
                for _ in range(int(batch is not batches[-1]) if fresh else self.iterations):
                    x = vectors.add(x, system.remainder(x), alpha=self.lr)
                if batch is batches[-1]:
                    answer = system.answer(x, upper_parameters)
                    require_converging(self, "lr", lower, system, x, answer)
        status = Status("AmIGO", iterations=self.iterations, residual=answer.residual)
        return Product(answer.values, status, state_of(system, x))
