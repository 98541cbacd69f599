"""Native hypergradient of learned sample weights.

For a lower loss ``L(w, θ) = mean_i V_i(sg(l(w)); θ) l_i(w)``, where ``sg`` stops the gradient, the
mixed derivative needs no second-order graph::

    (∂²L/∂θ∂w) v = ∇_θ mean_i V_i(sg(l); θ) sg(d_i),      d_i = <∇_w l_i, v>

The ``d_i`` of a whole batch are directional derivatives of its losses along ``v``: one forward-mode
pass (exact), or two forward passes without any graph (central difference), or one, where the
losses at one end are those the training step computed (one-sided difference). With the inverse
Hessian taken as the identity the hypergradient is minus that. ``V`` may look at the whole batch, so
weights normalised over it are covered.

Unlike a finite difference of the weighted loss this respects the stop-gradient, and so it is the
one-step gradient of Meta-Weight-Net as published, without its factor of the inner learning rate:
taken at the parameters after the step by the first two, at those before it, as published, by the
last.

Sources: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), eq. 7-8;
Ren et al., "Learning to Reweight Examples", ICML 2018 (arXiv:1803.09050).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError, HypergradientError
from ..base.settings import is_positive, require_choice, require_flag
from ..products.evaluation import Evaluation, require_recorded
from ..products.sample_derivatives import forward_mode_derivatives, replayed_losses
from ..recording.trajectory import Recording
from ..unrolling import go_back_to
from .base import Approximation, Hypergradient, Product, Status
from .parameter_selection import reusable_activations, reuses_activations

if TYPE_CHECKING:
    from ..problem import Problem
    from ..recording.trajectory import RecordedStep, RecordedUpdate
    from ..reweighted import ReweightedProblem

ALPHA = {"central_difference": 0.01, "one_sided": 3e-4, "forward_mode": 0.01}


@dataclass(frozen=True)
class Reweighting(Hypergradient):
    """``-∇_θ mean_i V_i(sg(l); θ) sg(<∇_w l_i, v>)`` for a :class:`ReweightedProblem`.

    Args:
        derivative: How the ``d_i`` are found.

            - ``"central_difference"``: two forward passes of the sample losses without any graph,
              about the parameters after the step; error of order ``alpha²``.
            - ``"one_sided"``: one such pass; the other losses are those of the training step, so
              the derivative is taken at the parameters before it. Error of order ``alpha``. Keeps
              a copy of parameters and buffers. Takes two passes where the step's losses cannot be
              used: after a ``training_step`` of its own, or one in 16 bits.
            - ``"forward_mode"``: one pass of dual numbers, exact to rounding, about 1.5 times the
              time of the two, after the step. Needs forward-mode formulas for every operation of
              the network, which fused attention kernels lack.

        alpha: Length of the displacement of a difference, ``eps = alpha / ||v||``; when left out,
            0.01 for the central and 3e-4 for the one-sided one. With these the relative error of
            the hypergradient of a ResNet-32 in single precision, against forward mode in float64,
            was 4e-4 to 8e-3 (central) and 2e-4 to 6e-3 (one-sided), that of the ``d_i`` 1e-3 to
            2e-2 and 1e-3 to 4e-3 (batches of 100 random images or digits, after 15 to 200 steps).
            There, one-sided errors grow in proportion above 1e-3; below 1e-4 rounding takes over.
        full_precision: Compute the passes without autocast.
    """

    derivative: str = "central_difference"
    alpha: float | None = None
    full_precision: bool = True

    def __post_init__(self) -> None:
        require_choice("Reweighting", "derivative", self.derivative, ALPHA)
        require_flag("Reweighting", "full_precision", self.full_precision)
        if self.alpha is not None and not is_positive(self.alpha):
            raise ConfigurationError(
                f"Reweighting(alpha={self.alpha!r}) must be positive and finite; leave it out for "
                f"{ALPHA[self.derivative]}, the usual choice."
            )

    def recording(self, problem: Problem) -> Recording:
        del problem
        before = self.derivative == "one_sided"
        return Recording(parameters=before, losses=before, activations=before)

    def approximation(self, problem: Problem) -> Approximation | None:
        del problem
        if self.derivative == "forward_mode":
            return None
        central = self.derivative == "central_difference"
        return Approximation(
            alpha=self.length,
            setting="alpha (Config(darts_alpha=...))" if central else "alpha",
            with_alpha=lambda alpha: replace(self, alpha=alpha),
            moves_detached=False,
        )

    def check(self, problem: Problem) -> None:
        require_reweighted(problem)

    @property
    def length(self) -> float:
        """Length of the displacement: ``alpha``, or the usual one for the derivative."""
        return ALPHA[self.derivative] if self.alpha is None else self.alpha

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        problem = require_reweighted(problem)
        update = require_recorded(problem)
        steps = update.steps
        with Evaluation(
            problem,
            graph=False,
            in_full_precision=self.full_precision,
            second_order=self.derivative == "forward_mode",
        ) as evaluation:
            weights = evaluation.weights
            if self.derivative == "forward_mode":
                pairs = forward_mode_derivatives(problem, steps, weights, vector)
            elif self.derivative == "central_difference":
                inverse_eps = evaluation.inverse_step(vector, self.length)
                pairs = central_derivatives(problem, steps, weights, vector, inverse_eps)
            else:
                inverse_eps = evaluation.inverse_step(vector, self.length, order=1)
                same = problem.config.precision == "fp32" or not self.full_precision
                pairs = one_sided_derivatives(
                    problem, update, weights, vector, inverse_eps, same_precision=same
                )
            mixed = problem.weight_products(steps, pairs, upper_parameters)
        return Product(vectors.scale(mixed, -1.0), Status("Reweighting"))


def require_reweighted(problem: Problem) -> ReweightedProblem:
    """Return the problem if it declares its sample losses and weights.

    Raises:
        ConfigurationError: When it does not.
    """
    from ..reweighted import ReweightedProblem  # noqa: PLC0415 (a problem knows its algorithms)

    if not isinstance(problem, ReweightedProblem):
        raise ConfigurationError(
            f"Problem {problem.name!r} asks for the 'reweighting' hypergradient but is a "
            f"{type(problem).__name__}; derive it from ReweightedProblem and define "
            "sample_losses and sample_weights, or choose type='darts'."
        )
    return problem


def central_derivatives(
    problem: ReweightedProblem,
    steps: Sequence[RecordedStep],
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch from losses at ``w ± eps v``, without a graph.

    The losses returned are the mean of the two, equal to ``l_i(w)`` up to ``O(eps²)``.
    """
    shift = vectors.divide(vector, inverse_eps)
    with torch.no_grad():
        with vectors.Displacement(parameters) as weights:
            weights.move(shift)
            if reuses_activations(problem):
                reuse = [reusable_activations(problem, step.batch) for step in steps]
                plus = [r.record(_losses(problem, s)) for r, s in zip(reuse, steps, strict=True)]
                weights.move(shift, -2.0)
                minus = [r.repeat(_losses(problem, s)) for r, s in zip(reuse, steps, strict=True)]
            else:
                plus = [replayed_losses(problem, step) for step in steps]
                weights.move(shift, -2.0)
                minus = [replayed_losses(problem, step) for step in steps]
        half = inverse_eps / 2
        return [((p + m) / 2, (p - m) * half) for p, m in zip(plus, minus, strict=True)]


def one_sided_derivatives(
    problem: ReweightedProblem,
    update: RecordedUpdate,
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
    *,
    same_precision: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch at ``w_0``, where the recorded step started.

    The derivatives are ``(l_i(w_0 + eps v) - l_i(w_0)) / eps``, from one pass without a graph when
    the step left its losses, and else from two.

    Args:
        problem: Whose step it was.
        update: The step, recorded with parameters and losses.
        parameters: The parameters to displace.
        vector: ``v``.
        inverse_eps: ``1 / eps``.
        same_precision: Whether the step computed its losses as they are computed here.

    Raises:
        HypergradientError: When the recording lacks the parameters.
    """
    if not update.start:
        raise HypergradientError(
            f"The last step of problem {problem.name!r} was not recorded with the parameters it "
            "started from, which Reweighting(derivative='one_sided') goes back to; run the program "
            "through an Engine, which asks the hypergradient what to record."
        )
    steps = update.steps
    left = [s.losses for s in steps if s.losses is not None and problem.declares_its_loss]
    complete = len(left) == len(steps)
    shift = vectors.divide(vector, inverse_eps)
    with torch.no_grad(), vectors.Displacement(update.start):
        if complete and same_precision:
            base = left
        else:
            go_back_to(update)
            base = [replayed_losses(problem, step) for step in steps]
        go_back_to(update)
        with vectors.Displacement(parameters) as weights:
            weights.move(shift)
            moved = [
                _moved_losses(problem, step, parameters if same_precision else ()) for step in steps
            ]
        derivatives = [(m - b) * inverse_eps for m, b in zip(moved, base, strict=True)]
    return list(zip(left if complete else base, derivatives, strict=True))


def _losses(problem: ReweightedProblem, step: RecordedStep) -> Callable[[], Tensor]:
    return lambda: replayed_losses(problem, step)


def _moved_losses(
    problem: ReweightedProblem, step: RecordedStep, parameters: Sequence[Tensor]
) -> Tensor:
    """Return the sample losses where ``parameters`` are now, with what the step left of others."""
    reuse = step.activations
    if reuse is None or not reuse.serves(parameters):
        return replayed_losses(problem, step)
    return reuse.repeat(_losses(problem, step))
