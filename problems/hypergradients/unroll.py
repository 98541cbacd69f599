"""The exact derivative through the last optimizer steps, at constant memory.

The lower problem takes steps ``(w_t, s_t) = U(w_{t-1}, g_t, s_{t-1})`` with
``g_t = ∇_w L_t(w_{t-1}, θ)``, where ``U`` is its optimizer with clipping, weight decay and whatever
settings a scheduler or an upper problem gave it. From ``λ_T = ∂F/∂w``, ``μ_T = 0`` the adjoint goes
back over the recorded steps::

    u_t             = (∂U/∂g)ᵀ (λ_t, μ_t)
    (λ_{t-1}, μ_{t-1}) = (∂U/∂(w, s))ᵀ (λ_t, μ_t) + (∂²L_t/∂w∂w u_t, 0)
    dF/dθ          += ∂²L_t/∂θ∂w u_t + (∂U/∂θ)ᵀ (λ_t, μ_t)

One step's graph exists at a time. ``w_0``, where the loop began, counts as a constant unless the
problem says what it is (``initial_parameters``); then ``(∂w_0/∂θ)ᵀ λ_0`` is added. Unlike the
implicit methods the result carries the scale of the learning rate, and follows its schedule. Of a
problem that itself differentiates through others, those are held where each step found them.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError
from ..base.settings import is_count, is_positive, require_choice
from ..kernels.compilation import uncompiled
from ..products.evaluation import Evaluation, require_recorded
from ..products.gradient_differences import declares_its_loss
from ..products.second_order import PRODUCTS, gradient_products, mean_over_micro_batches
from ..recording.trajectory import RecordedStep, RecordedUpdate, Recording
from ..unrolling import (
    go_back_to,
    owns_start,
    reads_values,
    start_of_loop,
    update_adjoint,
    why_not_differentiable,
)
from ..unrolling.sgd_adjoint import StateCotangents
from .base import Approximation, Hypergradient, Product, Status
from .own_steps import require_optimizer_steps

if TYPE_CHECKING:
    from ..problem import Problem

MEMORY = ("flat", "full")

# Length of the displacement; a one-sided difference has an error in proportion to it.
ALPHA = {"finite_difference": 3e-3, "one_sided": 3e-4}


@dataclass(frozen=True)
class Unroll(Hypergradient):
    """``(dw_T/dθ)ᵀ v`` through the real optimizer steps that led to ``w_T``.

    Memory beyond that of a training step: per recorded step a copy of parameters, gradients and
    optimizer state. Time: per step one forward and backward pass and a second-order product.

    Args:
        steps: How many of the loop's last ``unroll_steps`` optimizer steps to go back through;
            all of them when left out.
        product: ``"exact"``: second-order products by double backward. ``"forward_over_reverse"``:
            the same numbers by a backward pass with tangents. ``"finite_difference"``: from two
            ordinary gradients, for networks or kernels that cannot be differentiated twice.
            ``"one_sided"``: from one, and that of the training step.
        alpha: Length of the displacement of these two; 0.003 and 3e-4 when left out.
        memory: ``"flat"``: rebuild each step's graph. ``"full"``: keep the graphs of the training
            steps, which saves a forward and backward pass per step and holds all activations;
            needs ``product="exact"``, and takes the products in the precision of training. Of
            several upper problems the first finds the graph, which its own step spoils; the others
            rebuild.
    """

    steps: int | None = None
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
        if self.memory == "full" and self.product != "exact":
            raise ConfigurationError(
                f"Unroll(memory='full', product={self.product!r}): kept graphs are differentiated "
                "exactly; use product='exact', or memory='flat'."
            )
        if self.alpha is not None and not is_positive(self.alpha):
            raise ConfigurationError(
                f"Unroll(alpha={self.alpha!r}) must be positive and finite; leave it out for the "
                "usual choice."
            )

    @property
    def length(self) -> float:
        """Length of the displacement: ``alpha``, or the usual one for the product."""
        return ALPHA.get(self.product, 3e-3) if self.alpha is None else self.alpha

    def recording(self, problem: Problem) -> Recording:
        updates = problem.config.unroll_steps
        if self.steps is not None:
            updates = min(updates, self.steps)
        return Recording(
            updates=updates,
            parameters=True,
            optimizer=True,
            values=self.product == "one_sided" or reads_values(problem),
            losses=self.product in ALPHA,
            graphs=self.memory == "full",
            shares=self.product == "one_sided",
        )

    def check(self, problem: Problem) -> None:
        require_optimizer_steps(
            problem, "an unrolled hypergradient", "choose an implicit method such as type='cg'"
        )
        if self.memory == "full" and problem.position.paths:
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for Unroll(memory='full') but differentiates "
                "through problems below it, which no kept graph reaches; use memory='flat'."
            )
        reason = why_not_differentiable(problem.optimizer)
        if reason is not None:
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for an unrolled hypergradient, but {reason}. "
                "Use another optimizer, or an implicit method such as Config(type='cg')."
            )
        if self.steps is not None and self.steps > problem.config.unroll_steps:
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for Unroll(steps={self.steps}) but takes "
                f"Config(unroll_steps={problem.config.unroll_steps}) steps for every step of its "
                "upper problems; raise unroll_steps, or leave steps out."
            )

    def approximation(self, problem: Problem) -> Approximation | None:
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
            moves_detached=not declares_its_loss(problem),
        )

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        require_recorded(problem)
        updates = list(problem.trajectory.updates)
        total: list[Tensor] | None = None
        with Evaluation(
            problem,
            graph=True,
            in_full_precision=True,
            second_order=self.product not in ALPHA,
        ) as evaluation:
            weights = evaluation.weights
            cotangents = dict(zip(weights, vector, strict=True))
            states: StateCotangents = {}
            spare: StateCotangents = {}
            again = [update for update in updates if not _is_kept(update)]
            home = list({p: None for update in again for p in update.start})
            with vectors.Displacement(home) if home else nullcontext():
                initial = start_of_loop(problem) if _whole_loop(problem, updates) else {}
                for number in range(len(updates) - 1, -1, -1):
                    update = updates[number]
                    # The parameters the loop began with are mostly nobody's function.
                    goes_on = number > 0 or bool(initial)
                    adjoint = update_adjoint(
                        problem,
                        update,
                        cotangents,
                        states,
                        upper_parameters,
                        gradients_only=not goes_on,
                        spare=spare,
                    )
                    inputs = [*weights, *upper_parameters] if goes_on else list(upper_parameters)
                    along = vectors.fill_none([adjoint.gradients.get(p) for p in weights], weights)
                    products = self._products(
                        problem, evaluation, update, along, inputs, adjoint.factor
                    )
                    if goes_on:
                        own = problem.processes.mean(products[: len(weights)])
                        moved = [adjoint.parameters[p] for p in weights]
                        # At first these may be the caller's.
                        in_place = number < len(updates) - 1
                        below = _sum(moved, own, in_place=in_place)
                        cotangents = dict(zip(weights, below, strict=True))
                        spare, states = states, adjoint.states
                    above = products[len(inputs) - len(upper_parameters) :]
                    total = above if total is None else vectors.add(total, above)
                    if adjoint.upper_parameters:
                        total = vectors.add(total, adjoint.upper_parameters)
                assert total is not None
                if initial:
                    total = vectors.add(
                        total, _through_start(initial, cotangents, upper_parameters)
                    )
        return Product(total, Status("Unroll", iterations=len(updates)))

    def _products(
        self,
        problem: Problem,
        evaluation: Evaluation,
        update: RecordedUpdate,
        along: Sequence[Tensor],
        inputs: Sequence[Tensor],
        factor: Tensor | float,
    ) -> list[Tensor]:
        """Return the products of ``factor * along``."""
        if _is_kept(update):
            found = _kept_products(problem, evaluation, update, along, inputs)
            return _times(found, factor)
        go_back_to(update)
        product = PRODUCTS[self.product]
        if self.product not in ALPHA:
            return _times(product(problem, evaluation, update, along, inputs, 0.0), factor)
        # Differences are not linear in it. A compiled pass shows no activation pattern.
        u = _times(along, factor)
        with uncompiled():
            return product(problem, evaluation, update, u, inputs, self.length)


def _is_kept(update: RecordedUpdate) -> bool:
    return all(step.graph is not None and step.graph.is_intact for step in update.steps)


def _whole_loop(problem: Problem, updates: Sequence[RecordedUpdate]) -> bool:
    whole = problem.trajectory.reaches_start(updates, problem.config.unroll_steps)
    return whole and owns_start(problem)


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


def _times(vector: Sequence[Tensor], factor: Tensor | float) -> list[Tensor]:
    one = not isinstance(factor, Tensor) and factor == 1.0
    return list(vector) if one else vectors.scale(vector, factor)


def _sum(left: list[Tensor], right: list[Tensor], *, in_place: bool) -> list[Tensor]:
    if not in_place:
        return vectors.add(left, right)
    torch._foreach_add_(left, right)
    return left


def _uses(problem: Problem) -> int:
    """Return how often one round of the upper problems differentiates through this one."""
    everyone = [problem, *problem.position.peers.values()]
    return sum(problem in path[1:-1] for upper in everyone for path in upper.paths)


def _kept_products(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    along: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> list[Tensor]:
    keep = _uses(problem) > 1

    def one(step: RecordedStep) -> list[Tensor]:
        graph = step.graph
        assert graph is not None
        gradient = [graph.gradients.get(p) for p in evaluation.weights]
        places = [graph.parameters.get(t, t) for t in inputs]
        products = gradient_products(gradient, along, places, keep=keep)
        if not keep:
            step.graph = None
        return products

    return mean_over_micro_batches(update.steps, one)
