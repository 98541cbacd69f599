"""References for a hypergradient, in double precision on the user's program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base import vectors
from ..base.errors import HypergradientError, MetaweightError
from ..hypergradients.base import Hypergradient, LowerProblem
from ..hypergradients.finite_difference import FiniteDifference
from ..hypergradients.product import Approximation
from ..hypergradients.unroll import Unroll
from ..problem import Problem
from ..products.recorded_loss import require_recorded
from ..products.second_order import exact
from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from ..recording.trajectory import Trajectory
from ..unrolling import OptimizerStep, why_not_differentiable
from .double_precision import double_precision
from .report import Agreement, agreement

Values = Sequence[Tensor]

# Short enough for an error of 1e-8, long enough for rounding of 1e-12 in double precision.
CONVERGED = 1e-4


@dataclass(frozen=True)
class References:
    """The references of a product; ``None`` for those that do not apply."""

    converged: list[Tensor]
    unrolled: list[Tensor] | None
    no_solve: str
    """Why the method's linear system has no converged solution; else empty."""
    as_configured: list[Tensor] | None
    """The product of the method as it is configured, in double precision."""
    eval_error: list[Tensor] | None
    """The displacement's error with batch norm and dropout in evaluation mode."""
    detached: Agreement | None
    """Agreement of a finite difference with the derivative that respects ``detach``."""
    repeatable: bool
    another_batch: list[Tensor] | None = None
    """The product of a method that solves a system, with another batch in place of the last."""


class Comparison:
    """Computes the references of one product.

    Args:
        problem: The lower problem.
        lower: Its view for algorithms.
        method: Its hypergradient.
        vector: ``v``.
        upper_parameters: ``θ``.
        another: The micro-batches of an earlier step, if they are known.
    """

    def __init__(
        self,
        problem: Problem,
        lower: LowerProblem,
        method: Hypergradient,
        vector: Values,
        upper_parameters: Values,
        another: Sequence[RecordedStep] = (),
    ) -> None:
        self._problem = problem
        self._lower = lower.as_given() if method.follows_optimizer else lower
        self._method = method
        self._approximation = method.approximation(lower)
        self._vector = list(vector)
        self._wanted = upper_parameters
        self._another = another

    def references(self) -> References:
        """Return all references, in double precision if the program supports it."""
        repeatable = _repeatable(self._lower)
        approximation = self._approximation
        with _double_where_possible(self._problem, self._lower):
            if approximation is None:
                return self._solved(repeatable)
            return References(
                converged=self._values(approximation.with_alpha(CONVERGED)),
                unrolled=self._unrolled(),
                no_solve="",
                as_configured=self._values(approximation.with_alpha(approximation.alpha)),
                eval_error=self._error_in_eval_mode(approximation),
                detached=self._effect_of_detach() if approximation.moves_detached else None,
                repeatable=repeatable,
            )

    def _solved(self, repeatable: bool) -> References:
        """Return the references of a method without a displacement."""
        own, solve, no_solve = self._values(self._method), self._method.converged_solve(), ""
        converged = own
        if solve is not None:
            try:
                converged = self._values(solve.method)
            except HypergradientError as error:
                no_solve = str(error)
        return References(
            converged=converged,
            unrolled=self._unrolled(),
            no_solve=no_solve,
            as_configured=own,
            eval_error=None,
            detached=None,
            repeatable=repeatable,
            another_batch=None if solve is None else self._on_another_batch(),
        )

    def _on_another_batch(self) -> list[Tensor] | None:
        """Return the method's product with the other batch; ``None`` if it cannot be formed, or if
        the method draws batches of its own."""
        state = self._problem.step_state
        if not self._another or state.drawn:
            return None
        other = Trajectory(state.trajectory.recording)
        convert = state.as_drawn or (lambda step: step)
        other.updates.append(RecordedUpdate([convert(step) for step in self._another]))
        before = state.replace_trajectory(other)
        try:
            return self._values(self._method)
        except HypergradientError:
            return None
        finally:
            state.replace_trajectory(before)

    def _values(self, method: Hypergradient) -> list[Tensor]:
        found = method.vjp(self._lower, self._fitting_vector(), self._wanted).values
        return self._lower.mean(found)

    def _fitting_vector(self) -> list[Tensor]:
        return [v.to(w.dtype) for v, w in zip(self._vector, self._lower.weights, strict=True)]

    def _unrolled(self) -> list[Tensor] | None:
        return self._values(Unroll()) if can_unroll(self._lower.optimizer_step) else None

    def _effect_of_detach(self) -> Agreement:
        moved = self._values(FiniteDifference(alpha=CONVERGED))
        lower = self._lower
        with lower.evaluation(second_order=True) as evaluation:
            update = require_recorded(lower)
            kept = exact(lower, evaluation, update, self._fitting_vector(), self._wanted)
        return agreement(moved, vectors.scale(lower.mean(kept), -1.0))

    def _error_in_eval_mode(self, approximation: Approximation) -> list[Tensor] | None:
        bending = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        layers = [
            m for m in self._problem.module.modules() if isinstance(m, bending) and m.training
        ]
        if not layers:
            return None
        for layer in layers:
            layer.eval()
        try:
            own = self._values(approximation.with_alpha(approximation.alpha))
            return vectors.subtract(own, self._values(approximation.with_alpha(CONVERGED)))
        finally:
            for layer in layers:
                layer.train()


def can_unroll(step: OptimizerStep) -> bool:
    """Return whether the optimizer step can be differentiated."""
    own = step.optimizer is not None and not step.is_custom
    return own and why_not_differentiable(step) is None


def _repeatable(lower: LowerProblem) -> bool:
    """Return whether a replay gives the same loss."""
    with torch.no_grad(), lower.evaluation(graph=False):
        step = lower.trajectory.window[0]
        first, second = (lower.loss(step) for _ in range(2))
        (differ,) = lower.mean([(first != second).float()])
        return not bool(differ)


@contextmanager
def _double_where_possible(problem: Problem, lower: LowerProblem) -> Iterator[None]:
    """Use double precision inside, unless the loss fails with it."""
    with ExitStack() as stack:
        stack.enter_context(double_precision(problem))
        try:
            with torch.no_grad(), lower.evaluation(graph=False):
                lower.loss(lower.trajectory.window[0])
        except (RuntimeError, TypeError, MetaweightError):
            stack.close()
        yield
