"""Central-difference hypergradient of DARTS.

The inverse Hessian is replaced by the identity. The product is then the mixed derivative, which a
difference of two gradients approximates::

    (dw*/dθ)ᵀ v  ≈  -∂²L/∂θ∂w · v  ≈  -(∇_θ L(w + eps v) - ∇_θ L(w - eps v)) / (2 eps)

with ``eps = alpha / ||v||``. There is no factor for the lower learning rate. A displacement of
``w`` changes *every* quantity computed from it, so detached quantities are differentiated too: on
``mean_i V(sg(l_i)) l_i`` this is the gradient of ``mean_i V(l_i) l_i``. For the gradient that
respects ``detach`` see :mod:`.reweighting`.

Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019
(arXiv:1806.09055); as an implicit gradient: Choe et al., "Betty", ICLR 2023 (arXiv:2207.02849).
The ``multitask`` form: Choe et al., "Making Scalable Meta Learning Practical" (SAMA), NeurIPS 2023
(arXiv:2310.05674).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ..base.errors import ConfigurationError
from ..base.settings import is_positive, require_flag
from ..kernels.activation_reuse import ReusableActivations
from ..products.recorded_loss import Losses, window_gradient
from ..products.second_derivatives import central_difference
from ..recording.recorded_steps import RecordedStep
from .base import Hypergradient, LowerProblem
from .product import Approximation, Product, Status

_STATUS = Status("FiniteDifference")

DIFFERENCE_PASSES = (
    "2 forward passes, and 2 backward passes through what depends on the upper parameters"
)


@dataclass(frozen=True)
class FiniteDifference(Hypergradient):
    """``-∂²L/∂θ∂w · v`` by a central difference, which Betty calls ``"darts"``.

    Cost: two forward passes of the lower loss, without a graph through the lower network, and two
    backward passes through what depends on ``θ``. The passes draw the random numbers of the
    differentiated step and have no side effects.

    Args:
        alpha: Length of the displacement, ``||eps v||``. Exact for a loss quadratic in ``w``;
            otherwise the error grows with its square. Increased for 16-bit parameters
            (:func:`~metaweight.problems.kernels.precision.difference_step`).
        multitask: Leave the parameters at ``w - eps v``, a step on the upper loss (SAMA for SGD).
        full_precision: Compute the two passes without autocast. With ``False`` they run in the
            problem's precision, with the displacement of 16-bit parameters.
    """

    spends_vector: ClassVar[bool] = True

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
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        values = mixed_difference(
            lower,
            vector,
            upper_parameters,
            alpha=self.alpha,
            keep_displaced=self.multitask,
            full_precision=self.full_precision,
        )
        return Product(values, _STATUS)

    @property
    def in_full_precision(self) -> bool:
        return self.full_precision

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return DIFFERENCE_PASSES

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def approximation(self, lower: LowerProblem) -> Approximation:
        del lower
        return Approximation(
            alpha=self.alpha,
            setting="alpha (Config(darts_alpha=...))",
            with_alpha=lambda alpha: FiniteDifference(alpha=alpha),
            moves_detached=True,
        )


def mixed_difference(
    lower: LowerProblem,
    vector: Sequence[Tensor],
    upper_parameters: Sequence[Tensor],
    *,
    alpha: float,
    keep_displaced: bool = False,
    full_precision: bool = True,
) -> list[Tensor]:
    """Return ``-(∇_θ L(w + eps v) - ∇_θ L(w - eps v)) / (2 eps)``; see the module's docstring."""
    first, again = _passes(lower, upper_parameters)
    with (
        lower.evaluation(graph=False, in_full_precision=full_precision) as evaluation,
        evaluation.compared() as rewind,
    ):

        def gradient(losses: Losses) -> list[Tensor]:
            rewind()
            return window_gradient(lower, upper_parameters, losses)

        return central_difference(
            partial(gradient, first),
            partial(gradient, again),
            evaluation.weights,
            vector,
            evaluation.inverse_step(vector, alpha),
            negative=True,
            stay=keep_displaced,
        )


def _passes(lower: LowerProblem, upper_parameters: Sequence[Tensor]) -> tuple[Losses, Losses]:
    """Return the functions by which the two passes compute the loss of a micro-batch.

    If only some parameters are displaced, the second pass recomputes only what depends on them or
    on ``upper_parameters``.
    """
    noted: dict[int, ReusableActivations] = {}

    def first(step: RecordedStep) -> Tensor:
        reuse = lower.reusable(step, upper_parameters)
        if reuse is None:
            return lower.loss(step)
        noted[id(step)] = reuse
        return reuse.record(lambda: lower.loss(step))

    def again(step: RecordedStep) -> Tensor:
        reuse = noted.get(id(step))
        return lower.loss(step) if reuse is None else reuse.repeat(lambda: lower.loss(step))

    return first, again
