"""Hypergradient of learned sample weights without a second-order graph.

The lower loss is ``L(w, θ) = mean_i V_i(sg(l(w)); θ) l_i(w)``, where ``sg`` stops the gradient. Its
mixed derivative is::

    (∂²L/∂θ∂w) v = ∇_θ mean_i V_i(sg(l); θ) sg(d_i),      d_i = <∇_w l_i, v>

The ``d_i`` of a batch are directional derivatives of its losses along ``v``. They take one
forward-mode pass (exact), two forward passes without a graph (central difference), or one such pass
and the losses of the training step (one-sided difference). With the inverse Hessian replaced by the
identity, the hypergradient is minus this product. ``V`` may use the whole batch, for instance to
normalise weights.

Unlike a finite difference of the weighted loss, this respects the stop-gradient. It is the one-step
gradient of Meta-Weight-Net without the factor of the lower learning rate. The one-sided difference
takes it at the parameters before the step, as published, the other two at those after it.

Sources: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379), eq. 7-8;
Ren et al., "Learning to Reweight Examples", ICML 2018 (arXiv:1803.09050).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError, HypergradientError
from ..base.settings import is_positive, require_choice, require_flag
from ..kernels.activation_reuse import ReusableActivations
from ..kernels.missing_derivatives import missing_derivative
from ..kernels.precision import HALF
from ..products.declared_loss import declared_products, directional_derivatives
from ..products.evaluation import Evaluation
from ..products.recorded_loss import SampleLoss, require_recorded
from ..products.sample_derivatives import Pass, central_derivatives, one_sided_derivatives
from ..recording.recorded_steps import RecordedStep, Recording
from ..recording.samples import Samples
from ..unrolling import at_start
from .base import Hypergradient, LowerProblem
from .product import Approximation, Product, Status

ALPHA = {"central_difference": 0.01, "one_sided": 3e-4, "forward_mode": 0.01}


@dataclass(frozen=True)
class Reweighting(Hypergradient):
    """``-∇_θ mean_i V_i(sg(l); θ) sg(<∇_w l_i, v>)`` for a :class:`ReweightedProblem`.

    Args:
        derivative: How to compute the ``d_i``. When left out, by a central difference, or in
            forward mode where passes compute in 16 bits: there a difference of losses is mostly
            rounding, of any length.

            - ``"central_difference"``: two forward passes of the sample losses without a graph,
              at the parameters after the step; error of order ``alpha²``.
            - ``"one_sided"``: one such pass, and the losses of the training step, so the
              derivative is taken at the parameters before the step. Error of order ``alpha``.
              Keeps a copy of parameters and buffers. Takes two passes if the losses of the step
              cannot be used: with an overridden ``training_step``, or one in 16 bits.
            - ``"forward_mode"``: one pass of dual numbers at the parameters after the step, exact
              to rounding, about 1.5 times the time of the two passes. Needs forward-mode formulas
              for every operation of the network, which fused attention kernels lack.

        alpha: Length of the displacement of a difference, ``eps = alpha / ||v||``; by default 0.01
            for the central and 3e-4 for the one-sided one. With these, for a ResNet-32 in single
            precision against forward mode in float64, the relative error of the hypergradient was
            4e-4 to 8e-3 (central) and 2e-4 to 6e-3 (one-sided), that of the ``d_i`` 1e-3 to 2e-2
            and 1e-3 to 4e-3 (batches of 100 random images or digits, after 15 to 200 steps).
            One-sided errors grow in proportion above 1e-3; below 1e-4 rounding dominates.
        full_precision: Compute the passes without autocast.
    """

    spends_vector: ClassVar[bool] = True

    derivative: str | None = None
    alpha: float | None = None
    full_precision: bool = True

    def __post_init__(self) -> None:
        if self.derivative is not None:
            require_choice("Reweighting", "derivative", self.derivative, ALPHA)
        require_flag("Reweighting", "full_precision", self.full_precision)
        if self.alpha is not None and not is_positive(self.alpha):
            raise ConfigurationError(
                f"Reweighting(alpha={self.alpha!r}) must be positive and finite; leave it out for "
                f"{replace(self, alpha=None).length}, the usual choice."
            )

    def recording(self, lower: LowerProblem) -> Recording:
        del lower
        before = self.derivative == "one_sided"
        return Recording(parameters=before, losses=before, activations=before)

    @property
    def in_full_precision(self) -> bool:
        return self.full_precision

    def passes(self, lower: LowerProblem) -> str:
        if self.derivative == "forward_mode":
            return "1 forward pass with tangents"
        if self.derivative is None and _usual(lower, self.full_precision) == "forward_mode":
            return "1 forward pass with tangents, since passes compute in 16 bits"
        if self.derivative != "one_sided":
            return "2 forward passes without a graph"
        if not require_declared(lower).is_the_loss:
            return "2 forward passes without a graph, since training_step is overridden"
        if self.full_precision and lower.optimizer_step.is_autocast:
            return "2 forward passes without a graph, since the losses of the step are in 16 bits"
        return "1 forward pass without a graph"

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        del lower
        return self.derivative != "forward_mode"

    def approximation(self, lower: LowerProblem) -> Approximation | None:
        if (self.derivative or _usual(lower, self.full_precision)) == "forward_mode":
            return None
        central = self.derivative != "one_sided"
        return Approximation(
            alpha=self.length,
            setting="alpha (Config(darts_alpha=...))" if central else "alpha",
            with_alpha=lambda alpha: replace(self, alpha=alpha),
            moves_detached=False,
        )

    def check(self, lower: LowerProblem) -> None:
        require_declared(lower)

    @property
    def length(self) -> float:
        """Length of the displacement: ``alpha``, or the default of the derivative."""
        usual = ALPHA[self.derivative or "central_difference"]
        return usual if self.alpha is None else self.alpha

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        sample = require_declared(lower)
        derivative = self.derivative or _usual(lower, self.full_precision)
        values: list[Tensor] | None = None
        if derivative == "forward_mode":
            try:
                values = self._by_forward_mode(lower, sample, vector, upper_parameters)
            except HypergradientError as error:
                if self.derivative is not None or missing_derivative(error.__cause__) is None:
                    raise
                _warn_of_difference(lower.name, error)
        if values is None:
            form, order = (_one_sided, 1) if derivative == "one_sided" else (_central, 2)
            warned = derivative == "forward_mode"
            with lower.evaluation(graph=False, in_full_precision=self.full_precision) as evaluation:
                inverse_eps = evaluation.inverse_step(vector, self.length, order, warned=warned)
                values = form(lower, sample, evaluation, vector, upper_parameters, inverse_eps)
        return Product(vectors.scale(values, -1.0), Status("Reweighting"))

    def _by_forward_mode(
        self,
        lower: LowerProblem,
        sample: SampleLoss,
        vector: Sequence[Tensor],
        upper_parameters: Sequence[Tensor],
    ) -> list[Tensor]:
        steps = require_recorded(lower).steps
        narrow = lower.computes_in(in_full_precision=self.full_precision) in HALF
        # Tangents of 16 bits overflow and vanish as numbers do.
        length = vectors.norm(vector).clamp_min(1e-30) if narrow else 1.0
        # Not spent: a difference may have to take its place.
        along = vectors.divide(vector, length) if narrow else vector
        with lower.evaluation(
            graph=False, in_full_precision=self.full_precision, second_order=True
        ) as evaluation:
            pairs = directional_derivatives(sample, steps, evaluation.weights, along)
            found = declared_products(sample, steps, pairs, upper_parameters)
        return vectors.scale(found, length) if narrow else found


def _usual(lower: LowerProblem, full_precision: bool) -> str:
    narrow = lower.computes_in(in_full_precision=full_precision) in HALF
    return "forward_mode" if narrow and lower.has_forward_derivatives else "central_difference"


def _warn_of_difference(name: str, error: HypergradientError) -> None:
    warnings.warn(
        f"Reweighting takes a central difference through problem {name!r}, since forward mode, its "
        "choice where passes compute in 16 bits, is not to be had. The relative error may be 0.1 "
        f"and more. {error.__cause__}",
        stacklevel=2,
    )


def require_declared(lower: LowerProblem) -> SampleLoss:
    """Return the declared sample losses and weights of the problem.

    Raises:
        ConfigurationError: When it declares none.
    """
    sample = lower.sample_loss
    if sample is None:
        raise ConfigurationError(
            f"Problem {lower.name!r} asks for the 'reweighting' hypergradient but declares no "
            "sample losses and weights; derive it from ReweightedProblem and define "
            "sample_losses and sample_weights, or choose type='darts'."
        )
    return sample


def _central(
    lower: LowerProblem,
    sample: SampleLoss,
    evaluation: Evaluation,
    vector: Sequence[Tensor],
    upper_parameters: Sequence[Tensor],
    inverse_eps: Tensor,
) -> list[Tensor]:
    """Return ``(∂²L/∂θ∂w) v`` at the present parameters; second passes reuse activations of first
    ones."""
    steps, weights = require_recorded(lower).steps, evaluation.weights
    with evaluation.compared() as rewind:
        noted = [lower.reusable(step) for step in steps]
        passes = list(zip(noted, [_pass(sample, step) for step in steps], strict=True))
        ahead = [f if r is None else partial(r.record, f) for r, f in passes]
        behind = [f if r is None else partial(r.repeat, f) for r, f in passes]
        behind[0] = partial(_after, rewind, behind[0])
        pairs = central_derivatives(ahead, behind, weights, vector, inverse_eps)
    return declared_products(sample, steps, pairs, upper_parameters)


def _one_sided(
    lower: LowerProblem,
    sample: SampleLoss,
    evaluation: Evaluation,
    vector: Sequence[Tensor],
    upper_parameters: Sequence[Tensor],
    inverse_eps: Tensor,
) -> list[Tensor]:
    """Return ``(∂²L/∂θ∂w) v`` at ``w_0``, the start of the recorded step.

    Takes one pass without a graph if the losses of the step are recorded and in the precision of
    the passes, else two.

    Raises:
        HypergradientError: When the recording lacks the parameters.
    """
    update = require_recorded(lower)
    if not update.start:
        raise HypergradientError(
            f"The last step of problem {lower.name!r} was not recorded with the parameters it "
            "started from, which Reweighting(derivative='one_sided') goes back to; run the program "
            "through an Engine, which asks the hypergradient what to record."
        )
    steps, weights = update.steps, evaluation.weights
    as_training = evaluation.computes_as_training
    recorded = [sample.recorded(step) for step in steps] if sample.is_the_loss else []
    left = [samples for samples in recorded if samples is not None]
    complete = len(left) == len(steps)
    with at_start(update):
        with torch.no_grad(), evaluation.compared() as rewind:
            base = left if complete and as_training else [sample.samples(s) for s in steps]
            rewind()
            changing = weights if as_training else ()
            moved = [partial(_moved, sample, step, changing) for step in steps]
            pairs = one_sided_derivatives(base, moved, weights, vector, inverse_eps)
        if complete:
            pairs = [(own, d) for own, (_, d) in zip(left, pairs, strict=True)]
        return declared_products(sample, steps, pairs, upper_parameters)


def _after(first: Callable[[], None], compute: Pass) -> Samples:
    first()
    return compute()


def _pass(sample: SampleLoss, step: RecordedStep) -> Pass:
    return lambda: sample.samples(step)


def _moved(sample: SampleLoss, step: RecordedStep, changing: Sequence[Tensor]) -> Samples:
    """Return the sample losses at the present ``changing``, reusing activations of the step."""
    reuse: ReusableActivations | None = step.activations
    if reuse is None or not reuse.serves(changing):
        return sample.samples(step)
    return reuse.repeat(_pass(sample, step))
