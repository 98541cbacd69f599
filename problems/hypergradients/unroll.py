"""The exact derivative through the last optimizer steps, with the graph of one step at a time.

The lower problem takes steps ``(w_t, s_t) = U(w_{t-1}, g_t, s_{t-1})`` with
``g_t = ∇_w L_t(w_{t-1}, θ)``, where ``U`` is its optimizer with clipping, weight decay and the
settings a scheduler or an upper problem gave it. The adjoint starts from ``λ_T = ∂F/∂w``,
``μ_T = 0`` and goes back over the recorded steps::

    u_t             = (∂U/∂g)ᵀ (λ_t, μ_t)
    (λ_{t-1}, μ_{t-1}) = (∂U/∂(w, s))ᵀ (λ_t, μ_t) + (∂²L_t/∂w∂w u_t, 0)
    dF/dθ          += ∂²L_t/∂θ∂w u_t + (∂U/∂θ)ᵀ (λ_t, μ_t)

``w_0``, the start of the loop, counts as a constant unless the problem defines it in
``initial_parameters``; then ``(∂w_0/∂θ)ᵀ λ_0`` is added. Unlike the implicit methods, the result
has the scale of the learning rate and follows its schedule. If the problem itself differentiates
through others, their parameters are constants, with the values they had in each step.

Sources: Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through Reversible
Learning", ICML 2015 (arXiv:1502.03492); Franceschi et al., "Forward and Reverse Gradient-Based
Hyperparameter Optimization", ICML 2017 (arXiv:1703.01785); truncation: Shaban et al., "Truncated
Back-propagation for Bilevel Optimization", AISTATS 2019 (arXiv:1810.10667); one step: T1-T2 of
Luketina et al., ICML 2016 (arXiv:1511.06727).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..base import vectors
from ..base.displacement import Displacement
from ..base.errors import ConfigurationError
from ..base.settings import is_count, is_positive, require_choice
from ..products.declared_loss import declared_loss
from ..products.recorded_loss import require_recorded
from ..products.second_order import PRODUCTS
from ..recording.recorded_steps import RecordedUpdate, Recording
from ..unrolling import (
    OptimizerStep,
    reads_values,
    restore_start,
    why_not_differentiable,
)
from ..unrolling.unrolled_vjp import reverse_sweep
from .base import Hypergradient, LowerProblem
from .optimizer_steps import require_optimizer_steps
from .product import Approximation, Product, Status
from .step_back import StepBack, is_kept

MEMORY = ("flat", "full", "auto")

# Lengths of the displacement. The error of a one-sided difference is proportional to its length.
ALPHA = {"finite_difference": 3e-3, "one_sided": 3e-4}


@dataclass(frozen=True)
class Unroll(Hypergradient):
    """``(dw_T/dθ)ᵀ v`` through the recorded optimizer steps that led to ``w_T``.

    Memory beyond that of a training step: per recorded step a copy of parameters, gradients and
    optimizer state. Time: per step one forward and backward pass and a second-order product.

    Args:
        steps: Number of last optimizer steps to differentiate through, at most ``unroll_steps``;
            by default all of the loop.
        product: ``"exact"``: second-order products by double backward. ``"forward_over_reverse"``:
            the same values by a backward pass with tangents. ``"finite_difference"``: from two
            gradients, for networks or kernels that cannot be differentiated twice.
            ``"one_sided"``: from one gradient, and that of the training step.
        alpha: Length of the displacement of the last two; 0.003 and 3e-4 by default.
        memory: ``"flat"``: rebuild each step's graph. ``"full"``: keep the graphs of the training
            steps. This saves a forward and backward pass per step and keeps all activations; needs
            ``product="exact"``, and computes products in the precision of training. With several
            upper problems only the first uses the graph, since its step invalidates it. ``"auto"``:
            as ``"full"`` if the graphs of all steps, and those of other problems that are kept so,
            fit in half of the memory that is free, as ``"flat"`` otherwise, under autocast, above
            other problems, and on devices that do not tell what is free. That is decided once, from
            the memory of the first graph, logged, and said by ``engine.describe()``; the results
            are equal to rounding.
    """

    steps: int | None = None
    follows_optimizer: ClassVar[bool] = True
    follows_gradient_hooks: ClassVar[bool] = True

    product: str = "exact"
    alpha: float | None = None
    memory: str = "flat"

    def __post_init__(self) -> None:
        if self.steps is not None and not is_count(self.steps, least=1):
            raise ConfigurationError(
                f"Unroll(steps={self.steps!r}) must be an integer of at least 1, or None for "
                "the whole loop."
            )
        require_choice("Unroll", "product", self.product, PRODUCTS)
        require_choice("Unroll", "memory", self.memory, MEMORY)
        if self.memory != "flat" and self.product != "exact":
            raise ConfigurationError(
                f"Unroll(memory={self.memory!r}, product={self.product!r}): kept graphs are "
                "differentiated exactly; use product='exact', or memory='flat'."
            )
        if self.alpha is not None and not is_positive(self.alpha):
            raise ConfigurationError(
                f"Unroll(alpha={self.alpha!r}) must be positive and finite; leave it out for the "
                "usual choice."
            )

    @property
    def length(self) -> float:
        """Length of the displacement: ``alpha``, or the default of the product."""
        return ALPHA.get(self.product, 3e-3) if self.alpha is None else self.alpha

    def sees_settings(self, lower: LowerProblem) -> bool:
        del lower
        return True

    def sees_start(self, lower: LowerProblem) -> bool:
        return self.steps is None or self.steps >= lower.optimizer_step.per_loop

    def recording(self, lower: LowerProblem) -> Recording:
        step, may_fit = lower.optimizer_step, self.memory == "auto" and _may_keep(lower)
        updates = step.per_loop
        if self.steps is not None:
            updates = min(updates, self.steps)
        return Recording(
            updates=updates,
            parameters=True,
            optimizer=True,
            values=self.product == "one_sided" or reads_values(step),
            losses=self.product in ALPHA,
            graphs=self.memory == "full" or may_fit,
            graphs_if_free=may_fit,
            shares=self.product == "one_sided",
        )

    def passes(self, lower: LowerProblem) -> str:
        steps = lower.optimizer_step.per_loop if self.steps is None else self.steps
        kept = f"a backward pass of the kept graph of each of {steps} steps"
        graphs = lower.trajectory.keeps_graphs
        if graphs:
            return kept
        if graphs is None:
            return f"{kept}, if they fit in memory; otherwise {self._rebuilt(lower, steps)}"
        return self._rebuilt(lower, steps)

    def _rebuilt(self, lower: LowerProblem, steps: int) -> str:
        if self.product == "one_sided" and declared_loss(lower) is not None:
            return f"{steps} forward and {steps} backward passes"
        if self.product in ALPHA:
            return (
                f"{2 * steps} forward and {2 * steps} backward passes, and one of each more for "
                "activations with kinks, such as ReLU"
            )
        kind = "with a graph" if self.product == "exact" else "with tangents"
        graph = f", and {steps} backward passes of it" if self.product == "exact" else ""
        return f"{steps} forward and {steps} backward passes {kind}{graph}"

    def check(self, lower: LowerProblem) -> None:
        step = lower.optimizer_step
        require_optimizer_steps(
            step, "an unrolled hypergradient", "choose an implicit method such as type='cg'"
        )
        if self.memory == "full" and lower.has_problems_below:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for Unroll(memory='full') but differentiates "
                "through problems below it, which kept graphs do not contain; use memory='flat'."
            )
        reason = why_not_differentiable(step)
        if reason is not None:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for an unrolled hypergradient, but {reason}. "
                "Use another optimizer, or an implicit method such as Config(type='cg')."
            )
        if self.steps is not None and self.steps > step.per_loop:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for Unroll(steps={self.steps}) but takes "
                f"Config(unroll_steps={step.per_loop}) steps for every step of its "
                "upper problems; raise unroll_steps, or leave steps out."
            )

    def approximation(self, lower: LowerProblem) -> Approximation | None:
        if self.product not in ALPHA:
            return None
        return Approximation(
            alpha=self.length,
            setting="alpha",
            with_alpha=lambda alpha: (
                self
                if alpha == self.length
                else replace(self, product="finite_difference", alpha=alpha)
            ),
            moves_detached=declared_loss(lower) is None,
        )

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        lower = lower.as_given()
        require_recorded(lower)
        step = lower.optimizer_step
        updates = lower.trajectory.differentiable(start_moves=step.start_moves)
        to_start = updates[0].begins_loop and step.has_learned_start
        again = [update for update in updates if not is_kept(update)]
        # Kept graphs were made of what can be differentiated twice.
        twice = bool(again) and self.product not in ALPHA
        with lower.evaluation(graph=True, in_full_precision=True, second_order=twice) as evaluation:
            moved = updates if to_start else again
            home = list({p: None for update in moved for p in update.start})
            with Displacement(home) if home else nullcontext():
                back = StepBack(
                    self.product,
                    self.length,
                    lower,
                    evaluation,
                    updates,
                    upper_parameters,
                    to_start=to_start,
                )
                cotangents = dict(zip(evaluation.weights, vector, strict=True))
                cotangents, total = reverse_sweep(back, len(updates), cotangents)
                if to_start:
                    # Upper problems may have stepped since.
                    restore_start(updates[0])
                    through = _through_start(step.start_of_loop(), cotangents, upper_parameters)
                    total = vectors.add(total, through)
        status = Status("Unroll", iterations=len(updates), advice=_frozen_since(step, updates))
        return Product(total, status)


def _may_keep(lower: LowerProblem) -> bool:
    """Return whether kept graphs give what others give, to rounding."""
    return not (lower.has_problems_below or lower.optimizer_step.is_autocast)


def _frozen_since(step: OptimizerStep, updates: Sequence[RecordedUpdate]) -> str:
    """Return what to change where a parameter was trained in these steps and is not any more."""
    trained = set(step.trained)
    known = [update.moment.gradients for update in updates if update.moment is not None]
    if all(p in trained for gradients in known for p in gradients):
        return ""
    return (
        f"Problem {step.name!r} has frozen a parameter since a step of the loop that trained it, "
        "and the hypergradient takes it for a constant: freeze between loops, when no recorded "
        "step is left that trains it."
    )


def _through_start(
    initial: Mapping[Tensor, Tensor],
    cotangents: Mapping[Tensor, Tensor],
    upper_parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Return ``(∂w_0/∂θ)ᵀ λ_0``."""
    used = [(t, cotangents[p]) for p, t in initial.items() if t.requires_grad and p in cotangents]
    if not used:
        return [torch.zeros_like(t) for t in upper_parameters]
    found = torch.autograd.grad(
        [t for t, _ in used], upper_parameters, [c for _, c in used], allow_unused=True
    )
    return vectors.fill_none(found, upper_parameters)
