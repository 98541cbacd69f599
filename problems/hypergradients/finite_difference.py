"""Central-difference hypergradient of DARTS.

With the inverse Hessian taken as the identity the best-response product is the mixed derivative,
which a difference of two gradients approximates::

    (dw*/dθ)ᵀ v  ≈  -∂²L/∂θ∂w · v  ≈  -(∇_θ L(w + eps v) - ∇_θ L(w - eps v)) / (2 eps)

with ``eps = alpha / ||v||``. There is no factor for the inner learning rate. A change of ``w``
moves *every* quantity computed from it, so what the loss detaches is differentiated all the same:
on ``mean_i V(sg(l_i)) l_i`` this is the gradient of ``mean_i V(l_i) l_i``. For the gradient that
respects ``detach`` see :mod:`.reweighting`.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019
(arXiv:1806.09055); as an implicit gradient: Choe et al., "Betty", ICLR 2023 (arXiv:2207.02849).
The ``multitask`` form: Choe et al., "Making Scalable Meta Learning Practical" (SAMA), NeurIPS 2023
(arXiv:2310.05674).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError
from ..base.settings import is_positive, require_flag
from ..products.evaluation import (
    Evaluation,
    Losses,
    replayed_loss,
    require_recorded,
    window_gradient,
)
from .base import Approximation, Hypergradient, Product, Status
from .parameter_selection import reusable_activations, reuses_activations

if TYPE_CHECKING:
    from ..problem import Problem


@dataclass(frozen=True)
class FiniteDifference(Hypergradient):
    """The hypergradient Betty calls ``"darts"``: ``-∂²L/∂θ∂w · v`` by a central difference.

    Cost: two forward passes of the lower loss, without a graph through its own network, and two
    backward passes through whatever depends on ``θ``. The passes draw the random numbers of the
    step they differentiate and leave nothing behind.

    Args:
        alpha: Length of the displacement, ``||eps v||``. Exact for a loss quadratic in ``w``;
            otherwise the error grows with its square. Widened for 16-bit parameters
            (:func:`~metaweight.problems.kernels.precision.difference_step`).
        multitask: Leave the parameters at ``w - eps v``, a step on the upper loss (SAMA for SGD).
        full_precision: Compute the two passes without autocast. With ``False`` they run in the
            problem's own precision, with a step as for 16-bit parameters.
    """

    alpha: float = 0.01
    multitask: bool = False
    full_precision: bool = True

    def __post_init__(self) -> None:
        for flag in ("multitask", "full_precision"):
            require_flag("FiniteDifference", flag, getattr(self, flag))
        if not is_positive(self.alpha):
            raise ConfigurationError(
                f"FiniteDifference(alpha={self.alpha!r}) must be positive and finite; "
                "0.01 is the usual choice."
            )

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        values = central_difference(
            problem,
            vector,
            upper_parameters,
            alpha=self.alpha,
            keep_displaced=self.multitask,
            full_precision=self.full_precision,
        )
        return Product(values, Status("FiniteDifference"))

    def approximation(self, problem: Problem) -> Approximation:
        del problem
        return Approximation(
            alpha=self.alpha,
            setting="alpha (Config(darts_alpha=...))",
            with_alpha=lambda alpha: FiniteDifference(alpha=alpha),
            moves_detached=True,
        )


def central_difference(
    problem: Problem,
    vector: Sequence[Tensor],
    upper_parameters: Sequence[Tensor],
    *,
    alpha: float,
    keep_displaced: bool = False,
    full_precision: bool = True,
) -> list[Tensor]:
    """Return ``-(∇_θ L(w + eps v) - ∇_θ L(w - eps v)) / (2 eps)``; see the module's docstring."""
    with Evaluation(problem, graph=False, in_full_precision=full_precision) as evaluation:
        inverse_eps = evaluation.inverse_step(vector, alpha)
        shift = vectors.divide(vector, inverse_eps)
        with vectors.Displacement(evaluation.weights) as weights:
            weights.move(shift)
            first, again = _passes(problem, upper_parameters)
            plus = window_gradient(problem, upper_parameters, first)
            weights.move(shift, -2.0)
            minus = window_gradient(problem, upper_parameters, again)
            if keep_displaced:
                weights.stay()
    return vectors.scale(vectors.add(minus, plus, alpha=-1.0), inverse_eps / 2)


def _passes(problem: Problem, upper_parameters: Sequence[Tensor]) -> tuple[Losses, Losses]:
    """Return how the two passes compute the loss of a micro-batch.

    Where some parameters are displaced, the second repeats what depends on them and on
    ``upper_parameters``.
    """
    if not reuses_activations(problem):
        return replayed_loss, replayed_loss
    steps = require_recorded(problem).steps
    reuse = {
        id(step): reusable_activations(problem, step.batch, upper_parameters) for step in steps
    }
    return (
        lambda p, step: reuse[id(step)].record(lambda: replayed_loss(p, step)),
        lambda p, step: reuse[id(step)].repeat(lambda: replayed_loss(p, step)),
    )
