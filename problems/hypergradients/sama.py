"""SAMA: the central difference of DARTS, preconditioned by the Jacobian of the optimizer.

An optimizer changes ``w`` by ``-u(g)`` and not by ``-g``, so the derivative of ``w`` by ``θ`` has
the factor ``∂u/∂g``: the product is ``-∂²L/∂θ∂w (∂u/∂g)ᵀ v``.

Source: Choe et al., "Making Scalable Meta Learning Practical", NeurIPS 2023 (arXiv:2310.05674).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError, HypergradientError
from ..base.settings import is_positive, require_choice, require_flag
from ..products.recorded_loss import require_recorded
from ..recording.recorded_steps import Recording
from ..unrolling import (
    OptimizerStep,
    UpdateAdjoint,
    clipped,
    update_adjoint,
    why_not_differentiable,
)
from .base import Hypergradient, LowerProblem
from .finite_difference import DIFFERENCE_PASSES, mixed_difference
from .optimizer_steps import require_optimizer_steps
from .product import Approximation, Product, Status

PRECONDITIONERS = ("source", "exact")


@dataclass(frozen=True)
class SAMA(Hypergradient):
    """``-∂²L/∂θ∂w (∂u/∂g)ᵀ v`` by a central difference of length ``alpha``.

    ``U(w, g) = w - u(g)`` is the last optimizer step, with its state and settings. The two
    preconditioners are:

    - ``"source"``: the paper's. 1 for SGD: no learning rate, no momentum, no clipping. For Adam and
      AdamW the diagonal of :func:`adam_jacobian`, with the learning rate and without bias
      correction. Adam's first step is the sign of the gradient, whose derivative is 0 and would
      leave no hypergradient: there, the denominator counts as a constant. Other optimizers, AMSGrad
      among them, use the exact one.
    - ``"exact"``: ``∂u/∂g = -∂U/∂g`` with learning rate, momentum, bias correction, weight decay
      and gradient clipping, for every optimizer that
      :class:`~metaweight.problems.hypergradients.Unroll` can differentiate. The product is
      ``∂²L/∂θ∂w (∂U/∂g)ᵀ v``, that of one unrolled step, but with the mixed derivative at the end
      of the step instead of its start. If an upper problem learns optimizer settings,
      ``(∂U/∂θ)ᵀ v`` is added.

    Args:
        alpha: Length of the displacement. When it is left out, 0.01, as for
            :class:`~metaweight.problems.hypergradients.FiniteDifference`, or the paper's 1.0 with
            ``multitask``, which takes a step of this length. As a difference, 1.0 is too long for
            networks whose loss bends along the way.
        multitask: Leave the parameters at ``w - eps v`` with the preconditioned ``v``.
        preconditioner: ``"source"`` or ``"exact"``.
    """

    alpha: float | None = None
    multitask: bool = False
    preconditioner: str = "source"

    def __post_init__(self) -> None:
        require_flag("SAMA", "multitask", self.multitask)
        if self.alpha is not None and not is_positive(self.alpha):
            raise ConfigurationError(
                f"SAMA(alpha={self.alpha!r}) must be positive and finite; 1.0 is the paper's, and "
                "0.01 the usual one where parameters do not stay displaced."
            )
        require_choice("SAMA", "preconditioner", self.preconditioner, PRECONDITIONERS)

    @property
    def length(self) -> float:
        """Length of the displacement: ``alpha``, or the usual one."""
        usual = 1.0 if self.multitask else 0.01
        return usual if self.alpha is None else self.alpha

    def check(self, lower: LowerProblem) -> None:
        step = lower.optimizer_step
        if not self._is_exact(step):
            return
        require_optimizer_steps(step, "SAMA with the exact preconditioner", "choose type='darts'")
        reason = why_not_differentiable(step)
        if reason is not None:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for type='sama', but {reason}. Use another "
                "optimizer, or type='darts'."
            )

    def recording(self, lower: LowerProblem) -> Recording:
        step = lower.optimizer_step
        exact = self._is_exact(step)
        return Recording(
            parameters=exact, optimizer=exact or not isinstance(step.optimizer, torch.optim.SGD)
        )

    def passes(self, lower: LowerProblem) -> str:
        del lower
        return DIFFERENCE_PASSES

    def repeats_steps(self, lower: LowerProblem) -> bool:
        return self._is_exact(lower.optimizer_step)

    def sees_settings(self, lower: LowerProblem) -> bool:
        return self._is_exact(lower.optimizer_step)

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        return not self._is_exact(lower.optimizer_step)

    def approximation(self, lower: LowerProblem) -> Approximation:
        del lower
        return Approximation(
            alpha=self.length,
            setting="alpha (Config(sama_adam_alpha=...))",
            with_alpha=lambda alpha: replace(self, alpha=alpha, multitask=False),
            moves_detached=True,
        )

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        step = lower.optimizer_step
        through_settings: list[Tensor] | None = None
        if self._is_exact(step):
            # The adjoint knows the direction of the step.
            lower = lower.as_given()
            adjoint = step_adjoint(lower, vector, upper_parameters)
            vector = exact_preconditioned(lower, adjoint)
            through_settings = adjoint.upper_parameters if step.has_learned_settings else None
        elif not isinstance(step.optimizer, torch.optim.SGD):
            vector = adam_preconditioned(lower, vector)
        values = mixed_difference(
            lower, vector, upper_parameters, alpha=self.length, keep_displaced=self.multitask
        )
        if through_settings is not None:
            values = vectors.add(values, through_settings)
        return Product(values, Status("SAMA"))

    def _is_exact(self, step: OptimizerStep) -> bool:
        return self.preconditioner == "exact" or not in_source(step.optimizer)


def in_source(optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether the paper has a preconditioner for ``optimizer``."""
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return not any(group["amsgrad"] for group in optimizer.param_groups)
    return isinstance(optimizer, torch.optim.SGD)


def step_adjoint(
    lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
) -> UpdateAdjoint:
    """Return the adjoint of the last step for ``v``, the cotangent of the parameters."""
    cotangents = dict(zip(lower.weights, vector, strict=True))
    update = require_recorded(lower)
    return update_adjoint(lower.optimizer_step, update, cotangents, {}, upper_parameters)


def exact_preconditioned(lower: LowerProblem, adjoint: UpdateAdjoint) -> list[Tensor]:
    """Return ``(∂u/∂g)ᵀ v = -(∂U/∂g)ᵀ v``, 0 for parameters without a gradient."""
    found = adjoint.gradients
    parameters = lower.weights
    vector = vectors.fill_none([found.get(p) for p in parameters], parameters)
    return vectors.scale(vector, -1.0 * adjoint.factor)


def adam_preconditioned(lower: LowerProblem, vector: Sequence[Tensor]) -> list[Tensor]:
    """Return ``∂u/∂g ⊙ v`` with the paper's diagonal, 0 for parameters without a gradient."""
    moment = require_recorded(lower).moment
    if moment is None:
        raise HypergradientError(
            f"The last step of problem {lower.name!r} was not recorded with its gradients, which "
            "SAMA needs; run the program through an Engine, which asks it what to record."
        )
    step = lower.optimizer_step
    gradients = clipped(step, moment, moment.gradients)

    def jacobian(p: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        # A scheduler may have changed those of the optimizer since.
        group = moment.settings[p]
        if not moment.states[p]:
            return first_adam_jacobian(group, state)
        return adam_jacobian(group, state, _minimised(group, gradients[p]))

    with step.whole_state() as state:
        return [
            _elementwise(jacobian(p, state[p]), v) if p in gradients else torch.zeros_like(v)
            for p, v in zip(lower.weights, vector, strict=True)
        ]


def _elementwise(jacobian: Tensor, v: Tensor) -> Tensor:
    """Return the product; real and imaginary parts are entries of their own."""
    product = jacobian * vectors.real(v)
    return torch.view_as_complex(product) if v.is_complex() else product


def _minimised(group: Mapping[str, Any], gradient: Tensor) -> Tensor:
    """Return the gradient of the loss that a parameter group minimises."""
    return -gradient if group["maximize"] else gradient


def first_adam_jacobian(group: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """Return ``lr (1 - β1) / (sqrt(v) + eps)``, the diagonal ``∂u/∂g`` of Adam's first step with
    ``v`` as a constant; 0 where the gradient is 0."""
    second = vectors.real(state["exp_avg_sq"])
    scaled = group["lr"] * (1 - group["betas"][0]) / (second.sqrt() + group["eps"])
    return torch.where(second > 0, scaled, 0.0)


def adam_jacobian(
    group: Mapping[str, Any], state: Mapping[str, Tensor], gradient: Tensor
) -> Tensor:
    """Return the diagonal ``∂u/∂g`` of Adam's step ``u`` at its last gradient ``g``::

        lr ((1 - β1) β2 v' - β1 (1 - β2) g m') / (sqrt(v) + eps)³

    where ``m'``, ``v'`` are the moments before the step and ``v`` is the second moment after it.
    Bias correction is omitted, as in the source. Of complex parameters it is that of real and
    imaginary parts, in a last dimension of 2.
    """
    beta1, beta2 = group["betas"]
    first, second = vectors.real(state["exp_avg"]), vectors.real(state["exp_avg_sq"])
    gradient = vectors.real(gradient)
    old_first = (first - (1 - beta1) * gradient) / beta1 if beta1 else torch.zeros_like(first)
    old_second = (second - (1 - beta2) * gradient * gradient) / beta2
    numerator = (1 - beta1) * beta2 * old_second - beta1 * (1 - beta2) * gradient * old_first
    jacobian: Tensor = numerator / (second.sqrt() + group["eps"]) ** 3 * group["lr"]
    return jacobian
