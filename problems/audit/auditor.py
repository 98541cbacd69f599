"""Check of a hypergradient on the user's own program and batch.

Two references are computed in double precision, from the same vector ``v``:

- *itself, converged*: the same method without its own approximations (with a very short
  displacement). Differences are numerical: half precision, too long a displacement, a loss that
  cannot be replayed.
- *unrolled*: the exact derivative through the recorded optimizer steps
  (:class:`~metaweight.problems.hypergradients.Unroll`). Further differences are what the method
  ignores: curvature, earlier steps, the learning rate, or a ``detach`` in a finite difference.

With several processes, the means over processes are compared, and all report the same.

Causes are found by elimination: each possible cause is removed in turn. The report names the one
without which the error vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..hypergradients.base import Hypergradient, LowerProblem
from ..hypergradients.product import Product
from ..hypergradients.unroll import Unroll
from ..problem import Problem
from ..recording.recorded_steps import RecordedStep, Recording
from ..step.unseen_changes import unseen_changes
from .comparison import Comparison, can_unroll
from .diagnosis import Case, diagnose
from .report import HypergradientReport


class Auditor(Hypergradient):
    """Replaces a lower problem's hypergradient and checks its products.

    Args:
        problem: The lower problem.
        report: Called with the report of each check.
        tolerance: Largest accepted relative error against the converged method.
        due: Returns whether to check the next product; by default every product is checked.
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
        # The micro-batches of the step before the next one.
        self._before: Sequence[RecordedStep] = problem.step_state.trajectory.window

    @property
    def keeps_state(self) -> bool:
        """Whether the method keeps a state."""
        return self._problem.hypergradient.keeps_state

    def recording(self, lower: LowerProblem) -> Recording:
        """Return the recording that the method and the references need."""
        own = self._problem.hypergradient.recording(lower)
        if not can_unroll(lower.optimizer_step):
            return own
        return own.merged_with(Unroll().recording(lower))

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return the method's product; check it first if a check is due and possible."""
        method, updates = self._problem.hypergradient, lower.trajectory.updates
        another = updates[-2].steps if len(updates) > 1 else self._before
        self._before = lower.trajectory.window
        if not self._due() or not self._recorded(lower):
            return method.vjp(lower, vector, upper_parameters)
        comparison = Comparison(self._problem, lower, method, vector, upper_parameters, another)
        # References come first, since a method may change the parameters; unless graphs are kept,
        # which the references would release.
        keeps = lower.trajectory.recording.graphs
        product = method.vjp(lower, vector, upper_parameters) if keeps else None
        references = comparison.references()
        if product is None:
            product = method.vjp(lower, vector, upper_parameters)
        case = Case(
            problem=lower.name,
            method=type(method).__name__,
            status=product.status,
            solve=method.converged_solve(),
            approximation=method.approximation(lower),
            is_halved=self._is_halved(),
            steps=len(lower.trajectory.updates),
            unseen=unseen_changes(self._problem, method),
        )
        actual = lower.mean(product.values)
        self._report(diagnose(case, actual, references, self._tolerance))
        return product

    def _is_halved(self) -> bool:
        """Return whether the problem computes in half precision."""
        parameter = next(self._problem.module.parameters())
        return self._problem.config.precision != "fp32" or parameter.dtype.itemsize < 4

    def _recorded(self, lower: LowerProblem) -> bool:
        """Return whether the recording is complete; it is not just after a check has started."""
        asked, updates = self.recording(lower), lower.trajectory.updates
        return len(updates) == asked.updates and all(
            (bool(u.start) or not asked.parameters)
            and (u.moment is not None or not asked.optimizer)
            and (u.moment is None or u.moment.values or not asked.values)
            for u in updates
        )
