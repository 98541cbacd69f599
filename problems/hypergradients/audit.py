"""Is a hypergradient what it is meant to be? A check on the user's own program and batch.

Two references, both in double precision, from the very vector the method was given:

- *itself, converged*: the same method with its own approximations taken away (a displacement so
  short that its error is rounding). What differs is numerical: half precision, too long a step, a
  loss that cannot be replayed.
- *unrolled*: the exact derivative through the recorded optimizer steps
  (:class:`~metaweight.problems.hypergradients.Unroll`). What differs besides is what the method
  leaves out: curvature, earlier steps, the learning rate, what a finite difference cannot know was
  detached.

Of several processes it is the mean over all that is compared, and all report the same.

Causes are found by elimination: each suspect is taken away in turn, and the one without which the
error vanishes is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base import vectors
from ..base.errors import MetaweightError
from ..products.evaluation import Evaluation, replayed_loss, require_recorded
from ..products.in_double import in_double
from ..products.second_order import exact as exact_products
from ..recording.trajectory import Recording
from ..unrolling import why_not_differentiable
from .base import Approximation, Hypergradient, Product
from .finite_difference import FiniteDifference
from .unroll import Unroll

if TYPE_CHECKING:
    from ..problem import Problem

Values = Sequence[Tensor]

# Short enough for an error of 1e-8, long enough for rounding of 1e-12 in double precision.
CONVERGED = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How close a hypergradient is to a reference.

    Attributes:
        relative_error: ``||a - b|| / ||b||``.
        cosine: ``<a, b> / (||a|| ||b||)``.
        norm_ratio: ``||a|| / ||b||``.
    """

    relative_error: float
    cosine: float
    norm_ratio: float

    def __str__(self) -> str:
        return (
            f"relative error {self.relative_error:.2g}, cosine {self.cosine:.4f}, "
            f"norm ratio {self.norm_ratio:.4g}"
        )


@dataclass(frozen=True)
class HypergradientReport:
    """What a check found for one lower problem and one use of its hypergradient.

    Attributes:
        problem: Name of the lower problem.
        method: Class name of its hypergradient.
        converged: Against the same method in double precision, its displacement made short.
        unrolled: Against the exact derivative through the recorded steps, where there is one.
        advice: What is to blame and what to change, in plain words; empty when nothing is.
    """

    problem: str
    method: str
    converged: Agreement
    unrolled: Agreement | None
    advice: tuple[str, ...]

    @property
    def trustworthy(self) -> bool:
        """Whether nothing was found to blame."""
        return not self.advice

    def __str__(self) -> str:
        lines = [
            f"Hypergradient of {self.method} through problem {self.problem!r}",
            f"  against itself in double precision, converged: {self.converged}",
        ]
        if self.unrolled is not None:
            lines.append(f"  against the exact unrolled derivative: {self.unrolled}")
        lines += [f"  - {sentence}" for sentence in self.advice] or ["  nothing to blame"]
        return "\n".join(lines)


def agreement(actual: Values, reference: Values) -> Agreement:
    """Compare two hypergradients; reads the host."""
    a, b = (torch.cat([t.double().reshape(-1).cpu() for t in v]) for v in (actual, reference))
    length, other = float(a.norm()), float(b.norm())
    if length == 0.0 and other == 0.0:
        return Agreement(0.0, 1.0, 1.0)
    error = float((a - b).norm()) / other if other else math.inf
    cosine = float(torch.dot(a, b)) / (length * other) if length and other else 0.0
    return Agreement(error, cosine, length / other if other else math.inf)


class Auditor:
    """Stands in for a lower problem's hypergradient and checks each of its products.

    Args:
        report: Called with what a check found.
        tolerance: Largest relative error against the converged method that is let pass.
        due: Whether to check the next product; all of them when left out.
    """

    def __init__(
        self,
        report: Callable[[HypergradientReport], None],
        tolerance: float = 1e-2,
        due: Callable[[], bool] = lambda: True,
    ) -> None:
        self._report = report
        self._tolerance = tolerance
        self._due = due

    def recording(self, problem: Problem) -> Recording:
        """Return what the method and the references want of the problem's steps."""
        own = problem.hypergradient.recording(problem)
        if not _can_unroll(problem):
            return own
        return own.with_also(Unroll().recording(problem))

    def vjp(self, problem: Problem, vector: Values, upper_parameters: Values) -> Product:
        """Return the method's product, having checked it if that is due and can be done."""
        if not self._due() or not self._recorded(problem):
            return problem.hypergradient.vjp(problem, vector, upper_parameters)
        check = _Check(problem, problem.hypergradient, vector, upper_parameters)
        # References come first, since a method may leave the parameters elsewhere; but they cost
        # graphs that were kept.
        keeps = problem.trajectory.recording.graphs
        product = check.method.vjp(problem, vector, upper_parameters) if keeps else None
        references = check.references()
        if product is None:
            product = check.method.vjp(problem, vector, upper_parameters)
        actual = problem.processes.mean(product.values)
        self._report(check.report(actual, references, self._tolerance))
        return product

    def _recorded(self, problem: Problem) -> bool:
        """Whether the recording is what was asked for; not so just after a check was begun."""
        asked, updates = self.recording(problem), problem.trajectory.updates
        return len(updates) == asked.updates and all(
            (bool(u.start) or not asked.parameters)
            and (u.moment is not None or not asked.optimizer)
            and (u.moment is None or u.moment.values or not asked.values)
            for u in updates
        )


@dataclass(frozen=True)
class _References:
    """What a product is compared with; of those that do not apply there is none."""

    converged: list[Tensor]
    unrolled: list[Tensor] | None
    same_step: list[Tensor] | None
    """With the method's own displacement, in double precision."""
    bent: list[Tensor] | None
    """What is left of the displacement's error without batch statistics and dropout."""
    detached: Agreement | None
    """Of a finite difference and the derivative that respects what was detached."""
    repeatable: bool


class _Check:
    """One product of one method, and what to compare it with."""

    def __init__(
        self, problem: Problem, method: Hypergradient, vector: Values, upper_parameters: Values
    ) -> None:
        self.problem = problem
        self.method = method
        self._approximation = method.approximation(problem)
        self._vector = list(vector)
        self._wanted = upper_parameters

    def references(self) -> _References:
        """Compute them all, in double precision where the program can."""
        repeatable = _repeatable(self.problem)
        approximation = self._approximation
        with _double_where_possible(self.problem):
            if approximation is None:
                return _References(
                    self._values(self.method), self._unrolled(), None, None, None, repeatable
                )
            return _References(
                converged=self._values(approximation.with_alpha(CONVERGED)),
                unrolled=self._unrolled(),
                same_step=self._values(approximation.with_alpha(approximation.alpha)),
                bent=self._without_bending_layers(approximation),
                detached=self._effect_of_detach() if approximation.moves_detached else None,
                repeatable=repeatable,
            )

    def report(
        self, actual: Values, references: _References, tolerance: float
    ) -> HypergradientReport:
        """Judge the product and say what to change."""
        converged = agreement(actual, references.converged)
        unrolled = references.unrolled
        exact = None if unrolled is None else agreement(actual, unrolled)
        advice = [
            *self._numerical(converged, references, tolerance),
            *self._structural(exact, references, tolerance),
        ]
        name = type(self.method).__name__
        return HypergradientReport(self.problem.name, name, converged, exact, tuple(advice))

    def _values(self, method: Hypergradient) -> list[Tensor]:
        found = method.vjp(self.problem, self._fitting_vector(), self._wanted).values
        return self.problem.processes.mean(found)

    def _fitting_vector(self) -> list[Tensor]:
        weights = self.problem.meta_trainable_parameters()
        return [v.to(w.dtype) for v, w in zip(self._vector, weights, strict=True)]

    def _unrolled(self) -> list[Tensor] | None:
        return self._values(Unroll()) if _can_unroll(self.problem) else None

    def _effect_of_detach(self) -> Agreement:
        moved = self._values(FiniteDifference(alpha=CONVERGED))
        with Evaluation(
            self.problem, graph=True, in_full_precision=True, second_order=True
        ) as evaluation:
            kept = exact_products(
                self.problem,
                evaluation,
                require_recorded(self.problem),
                self._fitting_vector(),
                self._wanted,
            )
        return agreement(moved, vectors.scale(self.problem.processes.mean(kept), -1.0))

    def _without_bending_layers(self, approximation: Approximation) -> list[Tensor] | None:
        bending = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        layers = [m for m in self.problem.module.modules() if isinstance(m, bending) and m.training]
        if not layers:
            return None
        for layer in layers:
            layer.eval()
        try:
            own = self._values(approximation.with_alpha(approximation.alpha))
            return vectors.add(own, self._values(approximation.with_alpha(CONVERGED)), alpha=-1.0)
        finally:
            for layer in layers:
                layer.train()

    def _numerical(
        self, converged: Agreement, references: _References, tolerance: float
    ) -> Iterator[str]:
        if not references.repeatable:
            yield (
                f"The loss of problem {self.problem.name!r} changes when it is computed again with "
                "the same random state: it draws dropout or noise from a generator of its own, or "
                "keeps state. Draw from torch's, NumPy's or Python's global generator."
            )
        elif converged.relative_error > tolerance:
            yield self._blame(converged.relative_error, references, tolerance)

    def _blame(self, error: float, references: _References, tolerance: float) -> str:
        approximation = self._approximation
        if approximation is None or references.same_step is None:
            return self._blame_precision(error, 0.0)
        left = vectors.add(references.same_step, references.converged, alpha=-1.0)
        double = _length(left) / max(_length(references.converged), 1e-300)
        if double <= max(tolerance, 0.3 * error):
            return self._blame_precision(error, double)
        setting = f"{approximation.setting}={approximation.alpha:g}"
        if references.bent is not None and _length(references.bent) <= 0.1 * _length(left):
            return (
                f"Batch norm or dropout bends the loss within the displacement {setting} (relative "
                f"error {error:.2g}, gone with running statistics and without dropout): shorten it."
            )
        return (
            f"The displacement {setting} is too large for this loss (relative error {double:.2g} "
            "even in double precision): shorten it."
        )

    def _blame_precision(self, error: float, double: float) -> str:
        parameter = next(self.problem.module.parameters())
        halved = self.problem.config.precision != "fp32" or parameter.dtype.itemsize < 4
        remedy = "lengthen it" if self._approximation is not None else "train in double precision"
        if halved:
            return (
                f"Half precision spoils it (relative error {error:.2g}, {double:.2g} in double "
                "precision): keep full_precision=True, so that its passes run without autocast, "
                "and parameters in single precision."
            )
        what = "the displacement" if self._approximation is not None else "this method"
        return (
            f"Single precision is too coarse for {what} (relative error {error:.2g}, {double:.2g} "
            f"in double precision): {remedy}."
        )

    def _structural(
        self, unrolled: Agreement | None, references: _References, tolerance: float
    ) -> Iterator[str]:
        apart = references.detached
        if apart is not None and apart.relative_error > tolerance:
            yield (
                f"The loss of problem {self.problem.name!r} detaches something computed from its "
                "parameters; a finite difference moves it all the same (cosine "
                f"{apart.cosine:.3f} to the derivative that respects the detach, norm ratio "
                f"{apart.norm_ratio:.3g}): derive the problem from ReweightedProblem, or use "
                "Config(type='unroll')."
            )
        if unrolled is not None and unrolled.cosine < 0.9:
            yield (
                "Its direction is not that of the exact derivative through the last "
                f"{len(self.problem.trajectory.updates)} optimizer steps (cosine "
                f"{unrolled.cosine:.3f}): where these steps are what you mean to differentiate, "
                "use Config(type='unroll') or an IterativeProblem."
            )


def _repeatable(problem: Problem) -> bool:
    """Whether the loss is the same when it is replayed."""
    with torch.no_grad(), Evaluation(problem, graph=False, in_full_precision=True):
        step = problem.window[0]
        first, second = (replayed_loss(problem, step) for _ in range(2))
        (differ,) = problem.processes.mean([(first != second).double()])
        return not bool(differ)


def _can_unroll(problem: Problem) -> bool:
    kind, base = type(problem), _base()
    return (
        problem.optimizer is not None
        and kind.custom_optimizer_step is base.custom_optimizer_step
        and why_not_differentiable(problem.optimizer) is None
    )


def _base() -> type[Problem]:
    from ..problem import Problem  # noqa: PLC0415 (a problem knows its algorithms)

    return Problem


@contextmanager
def _double_where_possible(problem: Problem) -> Iterator[None]:
    """Double precision, unless the loss mixes in tensors that stay single."""
    with ExitStack() as stack:
        stack.enter_context(in_double(problem))
        try:
            with torch.no_grad(), Evaluation(problem, graph=False, in_full_precision=True):
                replayed_loss(problem, problem.window[0])
        except (RuntimeError, TypeError, MetaweightError):
            stack.close()
        yield


def _length(values: Values) -> float:
    return float(vectors.norm(values))
