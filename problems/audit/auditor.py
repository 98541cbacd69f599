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

from collections.abc import Callable, Sequence

from torch import Tensor

from ..hypergradients.base import Hypergradient, LowerProblem, Product
from ..hypergradients.unroll import Unroll
from ..problem import Problem
from ..recording.trajectory import Recording
from .comparison import Comparison, can_unroll
from .diagnosis import Case, diagnose
from .report import HypergradientReport


class Auditor(Hypergradient):
    """Stands in for a lower problem's hypergradient and checks each of its products.

    Args:
        problem: The lower problem.
        report: Called with what a check found.
        tolerance: Largest relative error against the converged method that is let pass.
        due: Whether to check the next product; all of them when left out.
    """

    def __init__(
        self,
        problem: Problem,
        report: Callable[[HypergradientReport], None],
        tolerance: float = 1e-2,
        due: Callable[[], bool] = lambda: True,
    ) -> None:
        self._problem = problem
        self._report = report
        self._tolerance = tolerance
        self._due = due

    def recording(self, lower: LowerProblem) -> Recording:
        """Return what the method and the references want of the problem's steps."""
        own = self._problem.hypergradient.recording(lower)
        if not can_unroll(lower.optimizer_step):
            return own
        return own.merged_with(Unroll().recording(lower))

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return the method's product, having checked it if that is due and can be done."""
        method = self._problem.hypergradient
        if not self._due() or not self._recorded(lower):
            return method.vjp(lower, vector, upper_parameters)
        comparison = Comparison(self._problem, lower, method, vector, upper_parameters)
        # References come first, since a method may leave the parameters elsewhere; but they cost
        # graphs that were kept.
        keeps = lower.trajectory.recording.graphs
        product = method.vjp(lower, vector, upper_parameters) if keeps else None
        references = comparison.references()
        if product is None:
            product = method.vjp(lower, vector, upper_parameters)
        case = Case(
            problem=lower.name,
            method=type(method).__name__,
            approximation=method.approximation(lower),
            is_halved=self._is_halved(),
            steps=len(lower.trajectory.updates),
        )
        actual = lower.mean(product.values)
        self._report(diagnose(case, actual, references, self._tolerance))
        return product

    def _is_halved(self) -> bool:
        """Whether the problem computes in half precision."""
        parameter = next(self._problem.module.parameters())
        return self._problem.config.precision != "fp32" or parameter.dtype.itemsize < 4

    def _recorded(self, lower: LowerProblem) -> bool:
        """Whether the recording is what was asked for; not so just after a check was begun."""
        asked, updates = self.recording(lower), lower.trajectory.updates
        return len(updates) == asked.updates and all(
            (bool(u.start) or not asked.parameters)
            and (u.moment is not None or not asked.optimizer)
            and (u.moment is None or u.moment.values or not asked.values)
            for u in updates
        )
