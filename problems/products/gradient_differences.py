"""Second derivatives of the lower loss times a vector, from differences of ordinary gradients.

With ``||eps u|| = alpha``, for ``x`` among the lower parameters ``w`` and upper ones ``θ``::

    central:    (∇_x L(w + eps u) - ∇_x L(w - eps u)) / (2 eps)     error O(alpha²), two gradients
    one-sided:  (∇_x L(w + eps u) - ∇_x L(w)) / eps                 error O(alpha), one gradient

the one-sided form because the training step has left its own gradient. Nothing is differentiated
twice. The displaced passes keep the activation pattern found at ``w``
(:mod:`metaweight.problems.kernels.activation_pattern`), for which a pass without a graph is made
there; a network without kinks makes one in all. What the loss detaches moves with ``w``, unless
the problem declares its sample losses and weights
(:class:`~metaweight.problems.ReweightedProblem`): then the weights are held where they were, and
the directional derivatives of the sample losses, which the same passes give, make up the
derivative by ``θ``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..base import vectors
from ..kernels.activation_pattern import ActivationPattern
from ..recording.trajectory import RecordedStep, RecordedUpdate
from .evaluation import Evaluation, replayed_loss
from .sample_derivatives import replayed_losses

if TYPE_CHECKING:
    from ..problem import Problem
    from ..reweighted import ReweightedProblem


class _Point(NamedTuple):
    """What one position of the parameters gives."""

    below: list[Tensor]
    """The gradient by lower parameters."""
    above: list[Tensor]
    """The gradient by upper parameters; of a declared loss nothing."""
    losses: list[Tensor]
    """The sample losses of a declared loss, per micro-batch."""


def finite_difference(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float,
) -> list[Tensor]:
    """Return the products by a central difference."""
    inverse_eps = evaluation.inverse_step(vector, alpha)
    shift = vectors.divide(vector, inverse_eps)
    below, above = _split(evaluation, inputs)
    patterns, held = _at_home(problem, evaluation, update)
    with vectors.Displacement(evaluation.weights) as weights:
        weights.move(shift)
        plus = _point(problem, evaluation, update, patterns, below, above, held)
        weights.move(shift, -2.0)
        minus = _point(problem, evaluation, update, patterns, below, above, held)
    found = _difference(problem, update, plus, minus, inverse_eps / 2, above, held)
    return _in_order(found, [*below, *above], inputs)


def one_sided(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    alpha: float,
) -> list[Tensor]:
    """Return the products by a one-sided difference, with what the training step left."""
    inverse_eps = evaluation.inverse_step(vector, alpha, order=1)
    shift = vectors.divide(vector, inverse_eps)
    below, above = _split(evaluation, inputs)
    patterns, held = _at_home(problem, evaluation, update)
    base = _recorded_point(problem, update, below, above, held)
    if base is None:
        base = _point(problem, evaluation, update, patterns, below, above, held)
    elif above and held is None:
        # The gradient by upper parameters is the one thing a training step does not compute.
        again = _point(problem, evaluation, update, patterns, [], above, held)
        base = base._replace(above=again.above)
    with vectors.Displacement(evaluation.weights) as weights:
        weights.move(shift)
        plus = _point(problem, evaluation, update, patterns, below, above, held)
    found = _difference(problem, update, plus, base, inverse_eps, above, held)
    return _in_order(found, [*below, *above], inputs)


def declares_its_loss(problem: Problem) -> TypeGuard[ReweightedProblem]:
    """Whether the problem's loss is the weighted mean of declared sample losses."""
    from ..reweighted import ReweightedProblem  # noqa: PLC0415 (a problem knows its algorithms)

    return isinstance(problem, ReweightedProblem) and problem.declares_its_loss


def _split(evaluation: Evaluation, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    own = {id(p) for p in evaluation.weights}
    return [t for t in inputs if id(t) in own], [t for t in inputs if id(t) not in own]


def _at_home(
    problem: Problem, evaluation: Evaluation, update: RecordedUpdate
) -> tuple[list[ActivationPattern], list[Tensor] | None]:
    """Return the activation patterns where the step began, per micro-batch.

    With them, of a declared loss, the sample losses that its weights were computed from.
    """
    patterns = [ActivationPattern() for _ in update.steps]
    recorded = [step.losses for step in update.steps if step.losses is not None]
    complete = len(recorded) == len(update.steps)
    losses: list[Tensor] | None = recorded if declares_its_loss(problem) else None
    if evaluation.has_kinks or (losses is not None and not complete):
        with torch.no_grad():
            found = [
                _noted(problem, step, pattern)
                for step, pattern in zip(update.steps, patterns, strict=True)
            ]
        losses = found if losses is not None and not complete else losses
        evaluation.has_kinks = any(len(pattern) for pattern in patterns)
    return patterns, losses


def _noted(problem: Problem, step: RecordedStep, pattern: ActivationPattern) -> Tensor:
    with pattern.noted():
        if declares_its_loss(problem):
            return replayed_losses(problem, step)
        return replayed_loss(problem, step)


def _recorded_point(
    problem: Problem,
    update: RecordedUpdate,
    below: Sequence[Tensor],
    above: Sequence[Tensor],
    held: list[Tensor] | None,
) -> _Point | None:
    """Return what training found where the step began, if it computed as the passes here do."""
    moment = update.moment
    altered = type(problem).grad_callback is not _base().grad_callback
    # What flowed in through problems below is no part of this loss's own gradient.
    altered = altered or bool(problem.position.paths)
    if moment is None or not moment.values or altered or problem.config.precision != "fp32":
        return None
    # A difference of this process's gradient from the mean of all would drown in rounding.
    own = update.share or moment.gradients
    gradients = [own.get(p, torch.zeros_like(p)) for p in below]
    return _Point(gradients, [torch.zeros_like(t) for t in above], held or [])


def _base() -> type[Problem]:
    from ..problem import Problem  # noqa: PLC0415 (a problem knows its algorithms)

    return Problem


def _point(
    problem: Problem,
    evaluation: Evaluation,
    update: RecordedUpdate,
    patterns: Sequence[ActivationPattern],
    below: Sequence[Tensor],
    above: Sequence[Tensor],
    held: list[Tensor] | None,
) -> _Point:
    """Measure at the parameters' present position."""
    with _without_graph(evaluation.weights if not below else []):
        if held is not None and declares_its_loss(problem):
            return _declared_point(problem, update.steps, patterns, below, held)
        inputs = [*below, *above]
        total: list[Tensor] | None = None
        for step, pattern in zip(update.steps, patterns, strict=True):
            with pattern.held():
                total = _increased(total, replayed_loss(problem, step), inputs)
        assert total is not None
        mean = total if len(update.steps) == 1 else vectors.scale(total, 1.0 / len(update.steps))
        return _Point(mean[: len(below)], mean[len(below) :], [])


def _declared_point(
    problem: ReweightedProblem,
    steps: Sequence[RecordedStep],
    patterns: Sequence[ActivationPattern],
    below: Sequence[Tensor],
    held: Sequence[Tensor],
) -> _Point:
    total: list[Tensor] | None = None
    losses = []
    for step, pattern, recorded in zip(steps, patterns, held, strict=True):
        with torch.no_grad():
            fixed = problem.checked_weights(recorded, step.batch) if below else recorded
        with pattern.held():
            sample = replayed_losses(problem, step)
            losses.append(sample.detach())
            if below:
                total = _increased(total, (fixed * sample).mean() / len(steps), below)
    return _Point(total or [], [], losses)


def _increased(total: list[Tensor] | None, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss, on top of others'."""
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, inputs, allow_unused=True)
    gradient = vectors.fill_none(found, inputs)
    return gradient if total is None else vectors.add(total, gradient)


def _difference(
    problem: Problem,
    update: RecordedUpdate,
    ahead: _Point,
    behind: _Point,
    scale: Tensor,
    above: Sequence[Tensor],
    held: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Return ``scale (ahead - behind)`` by lower and by upper parameters."""
    first: list[Tensor] = []
    if ahead.below:
        first = _scaled_difference(ahead.below, behind.below, scale)
    if not above:
        return first
    if held is None or not declares_its_loss(problem):
        return first + _scaled_difference(ahead.above, behind.above, scale)
    directional = [(a - b) * scale for a, b in zip(ahead.losses, behind.losses, strict=True)]
    pairs = list(zip(held, directional, strict=True))
    return first + problem.weight_products(update.steps, pairs, above)


def _scaled_difference(
    ahead: Sequence[Tensor], behind: Sequence[Tensor], scale: Tensor
) -> list[Tensor]:
    found = vectors.add(ahead, behind, alpha=-1.0)
    torch._foreach_mul_(found, scale)
    return found


def _in_order(
    found: Sequence[Tensor], given: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    by_identity = {id(t): value for t, value in zip(given, found, strict=True)}
    return [by_identity[id(t)] for t in inputs]


@contextmanager
def _without_graph(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let no graph run through the parameters."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
