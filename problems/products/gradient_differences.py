"""Second derivatives of the lower loss times a vector, from differences of gradients.

With ``||eps u|| = alpha``, for ``x`` among the lower parameters ``w`` and upper ones ``θ``::

    central:    (∇_x L(w + eps u) - ∇_x L(w - eps u)) / (2 eps)     error O(alpha²), two gradients
    one-sided:  (∇_x L(w + eps u) - ∇_x L(w)) / eps                 error O(alpha), one gradient

The one-sided form takes ``∇_x L(w)`` from the training step. Nothing is differentiated twice. The
displaced passes use the activation pattern at ``w``
(:mod:`metaweight.problems.kernels.activation_pattern`), which a pass without a graph records; for a
network without kinks only once. What the loss detaches changes with ``w``, unless the problem
declares its sample losses and weights (:class:`~metaweight.problems.ReweightedProblem`): then the
weights are constant, and the derivative by ``θ`` uses the directional derivatives of the sample
losses, from the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from ..kernels.activation_pattern import ActivationPattern
from ..recording.recorded_steps import RecordedUpdate
from ..recording.samples import Samples
from .declared_loss import declared_loss, declared_products
from .displaced import measure_both_sides, measure_one_side
from .evaluation import Evaluation
from .recorded_loss import RecordedLoss, SampleLoss, gradient_of


class _Point(NamedTuple):
    """Measurements at one value of the parameters."""

    below: list[Tensor]
    """The gradient by lower parameters."""
    above: list[Tensor]
    """The gradient by upper parameters; empty for a declared loss."""
    samples: list[Samples]
    """The sample losses of a declared loss, per micro-batch."""


def finite_difference(
    lower: RecordedLoss,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float,
) -> list[Tensor]:
    """Return the products by a central difference."""
    inverse_eps = evaluation.inverse_step(vector, alpha)
    with evaluation.compared() as rewind:
        passes = _Passes(lower, evaluation, update, inputs, rewind)
        plus, minus = measure_both_sides(
            evaluation.weights, vector, inverse_eps, passes.measure, passes.measure
        )
        return passes.difference(plus, minus, inverse_eps / 2)


def one_sided(
    lower: RecordedLoss,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float,
) -> list[Tensor]:
    """Return the products by a one-sided difference, with the gradient of the training step."""
    inverse_eps = evaluation.inverse_step(vector, alpha, order=1)
    with evaluation.compared() as rewind:
        passes = _Passes(lower, evaluation, update, inputs, rewind)
        base = passes.at_step_start()
        plus = measure_one_side(evaluation.weights, vector, inverse_eps, passes.measure)
        return passes.difference(plus, base, inverse_eps)


class _Passes:
    """Passes over one recorded step at displaced parameters.

    Create it at the parameters before the step: it records activation patterns and, for a declared
    loss, the sample losses that determine the constant weights.

    Args:
        lower: The lower problem.
        evaluation: The context of the passes.
        update: The step.
        inputs: The tensors to differentiate by.
        rewind: Called before each pass.
    """

    def __init__(
        self,
        lower: RecordedLoss,
        evaluation: Evaluation,
        update: RecordedUpdate,
        inputs: Sequence[Tensor],
        rewind: Callable[[], None],
    ) -> None:
        own = {id(p) for p in evaluation.weights}
        self._lower = lower
        self._evaluation = evaluation
        self._update = update
        self._inputs = inputs
        self._rewind = rewind
        self._below = [t for t in inputs if id(t) in own]
        self._above = [t for t in inputs if id(t) not in own]
        self._declared = declared_loss(lower)
        self._patterns = [ActivationPattern() for _ in update.steps]
        self._held = self._note()
        self._fixed = self._weights() if self._below else []

    def _note(self) -> list[Samples]:
        """Record activation patterns per micro-batch; return the samples of a declared loss."""
        steps, declared = self._update.steps, self._declared
        recorded = [step.samples for step in steps if step.samples is not None]
        known = declared is None or len(recorded) == len(steps)
        if known and not self._evaluation.has_kinks:
            return recorded
        found = []
        with torch.no_grad():
            for step, pattern in zip(steps, self._patterns, strict=True):
                with pattern.noted():
                    if declared is None:
                        self._lower.loss(step)
                    else:
                        found.append(declared.samples(step))
        self._evaluation.has_kinks = any(len(pattern) for pattern in self._patterns)
        return recorded if known else found

    def _weights(self) -> list[Tensor]:
        """Return the sample weights of a declared loss, which may be functions of ``w`` too."""
        if self._declared is None:
            return []
        with torch.no_grad():
            pairs = zip(self._held, self._update.steps, strict=True)
            return [self._declared.weights(samples, step) for samples, step in pairs]

    def measure(self) -> _Point:
        """Measure at the present parameters."""
        return self._measured(self._below)

    def _measured(self, below: list[Tensor]) -> _Point:
        self._rewind()
        with _without_graph(self._evaluation.weights if not below else []):
            if self._declared is not None:
                return self._declared_point(self._declared, below)
            return self._plain_point(below)

    def _plain_point(self, below: list[Tensor]) -> _Point:
        inputs = [*below, *self._above]
        steps = self._update.steps
        total: list[Tensor] | None = None
        for step, pattern in zip(steps, self._patterns, strict=True):
            with pattern.held():
                total = _summed(total, self._lower.loss(step), inputs)
        assert total is not None
        mean = total if len(steps) == 1 else vectors.scale(total, 1.0 / len(steps))
        return _Point(mean[: len(below)], mean[len(below) :], [])

    def _declared_point(self, declared: SampleLoss, below: list[Tensor]) -> _Point:
        steps = self._update.steps
        total: list[Tensor] | None = None
        found = []
        for number, (step, pattern) in enumerate(zip(steps, self._patterns, strict=True)):
            with pattern.held():
                samples = declared.samples(step)
                found.append(samples.detached())
                if below:
                    loss = (self._fixed[number] * samples.losses).mean() / len(steps)
                    total = _summed(total, loss, below)
        return _Point(total or [], [], found)

    def at_step_start(self) -> _Point:
        """Return the measurements before the step, from the recording where it has them."""
        base = self._recorded_point()
        if base is None:
            return self.measure()
        if self._above and self._declared is None:
            # A training step does not compute the gradient by upper parameters.
            return base._replace(above=self._measured([]).above)
        return base

    def _recorded_point(self) -> _Point | None:
        moment = self._update.moment
        # Callbacks and hypergradients through problems below change the recorded gradient.
        as_here = self._lower.has_plain_gradients and self._evaluation.computes_as_training
        if moment is None or not moment.values or not as_here:
            return None
        # Against the mean over processes, rounding would dominate the difference.
        own = self._update.share or moment.gradients
        gradients = [own.get(p, torch.zeros_like(p)) for p in self._below]
        above = [torch.zeros_like(t) for t in self._above]
        return _Point(gradients, above, self._held if self._declared is not None else [])

    def difference(self, ahead: _Point, behind: _Point, scale: Tensor) -> list[Tensor]:
        """Return ``scale (ahead - behind)`` in the order of the inputs."""
        found: list[Tensor] = []
        if ahead.below:
            found = _scaled_difference(ahead.below, behind.below, scale)
        if self._above and self._declared is None:
            found = found + _scaled_difference(ahead.above, behind.above, scale)
        elif self._above and self._declared is not None:
            ends = zip(self._held, ahead.samples, behind.samples, strict=True)
            pairs = [(held, (a.losses - b.losses) * scale) for held, a, b in ends]
            found = found + declared_products(
                self._declared, self._update.steps, pairs, self._above
            )
        given = [*self._below, *self._above]
        by_identity = {id(t): value for t, value in zip(given, found, strict=True)}
        return [by_identity[id(t)] for t in self._inputs]


def _summed(total: list[Tensor] | None, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss plus ``total``."""
    gradient = gradient_of(loss, inputs)
    return gradient if total is None else vectors.add(total, gradient)


def _scaled_difference(
    ahead: Sequence[Tensor], behind: Sequence[Tensor], scale: Tensor
) -> list[Tensor]:
    found = vectors.subtract(ahead, behind)
    torch._foreach_mul_(found, scale)
    return found


@contextmanager
def _without_graph(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Disable ``requires_grad`` of the parameters inside."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
