"""Checks of hypergradients on the running program, once or at an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from metaweight.problems import GraphError, HypergradientReport, Problem, ValueHypergradient
from metaweight.problems.audit import Auditor
from metaweight.problems.base.settings import require_count, require_number

from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


ADVICE = "it is the largest relative error that is accepted"


class HypergradientCheck(Hook):
    """Compares hypergradients with exact ones every ``every`` iterations, and logs the results.

    Logged per lower problem under ``hypergradient/<name>``: relative error and cosine against the
    method itself in double precision, cosine and norm ratio against the exact derivative through
    the recorded optimizer steps; advice goes to the log as text. A check costs several second-order
    products in double precision; between checks the last ``unroll_steps`` parameters and optimizer
    states are kept.

    Args:
        every: Iterations between two checks.
        tolerance: Largest relative error against the method itself that is accepted.

    Raises:
        ConfigurationError: For settings that are not positive numbers.
    """

    def __init__(self, every: int = 1000, tolerance: float = 1e-2) -> None:
        require_count("HypergradientCheck", "every", every, least=1)
        require_number("HypergradientCheck", "tolerance", tolerance, positive=True, advice=ADVICE)
        self.every = every
        self.tolerance = tolerance
        self.reports: list[HypergradientReport] = []
        self._due = 0
        self._logged = 0
        self._restored = False

    def run_start(self, engine: Engine) -> None:
        """Replace the hypergradients of all lower problems by audited ones."""
        if not self._restored:
            self._due = engine.global_step + self.every
        self._restored = False
        for lower in lower_problems(engine):
            auditor = Auditor(
                lower, self.reports.append, self.tolerance, lambda: engine.global_step >= self._due
            )
            engine.audit(lower, auditor)

    def run_end(self, engine: Engine) -> None:
        """Restore the hypergradients."""
        for lower in lower_problems(engine):
            engine.audit(lower, None)

    def iteration_end(self, engine: Engine) -> None:
        """Log the reports of this iteration."""
        if len(self.reports) == self._logged:
            return
        for report in self.reports[self._logged :]:
            self._log(engine, report)
        self._logged = len(self.reports)
        self._due = engine.global_step + self.every

    def state_dict(self) -> dict[str, Any]:
        """Return when the next check is due; reports are not saved."""
        return {"due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._due, self._restored = int(state["due"]), True

    def _log(self, engine: Engine, report: HypergradientReport) -> None:
        engine.logger.info(str(report))
        numbers = {
            "relative_error": report.converged.relative_error,
            "cosine": report.converged.cosine,
        }
        if report.unrolled is not None:
            numbers |= {
                "unrolled_cosine": report.unrolled.cosine,
                "unrolled_norm_ratio": report.unrolled.norm_ratio,
            }
        engine.logger.log(numbers, tag=f"hypergradient/{report.problem}", step=engine.global_step)


def lower_problems(engine: Engine) -> list[Problem]:
    """Return the problems that an upper problem differentiates through by a gradient method."""
    found: list[Problem] = []
    for problem in engine.problems:
        for path in problem.paths:
            found += [lower for lower in path[1:-1] if lower not in found]
    return [p for p in found if not isinstance(p.hypergradient, ValueHypergradient)]


def check_hypergradients_of(engine: Engine, tolerance: float) -> list[HypergradientReport]:
    """Train until every lower problem's hypergradient has been checked once.

    Raises:
        GraphError: When no problem differentiates through another, or some check did not happen
            within a number of iterations in which every problem steps.
        ConfigurationError: For a tolerance that is not a positive number.
    """
    require_number("check_hypergradient", "tolerance", tolerance, positive=True, advice=ADVICE)
    lowers = lower_problems(engine)
    if not lowers:
        raise GraphError(
            "check_hypergradient() was asked of a program in which no problem differentiates "
            "through another; add a 'u2l' edge to the dependencies, and choose a method that works "
            "from a gradient: what zero_order and reinforce estimate has none to be compared with."
        )
    reports: list[HypergradientReport] = []
    limit = _iterations_at_most(engine)
    with _auditing(engine, lowers, reports, tolerance):
        for _ in range(limit):
            engine.global_step += 1
            engine.train_step()
            seen = {report.problem for report in reports}
            if all(lower.name in seen for lower in lowers):
                return reports
    missing = [lower.name for lower in lowers if lower.name not in seen]
    raise GraphError(
        f"check_hypergradient() saw no upper problem differentiate through {missing} in {limit} "
        "iterations; check unroll_steps, warmup_steps and the 'l2u' edges, or run() first."
    )


@contextmanager
def _auditing(
    engine: Engine, lowers: list[Problem], reports: list[HypergradientReport], tolerance: float
) -> Iterator[None]:
    before = [lower.step_state.auditor for lower in lowers]
    for lower in lowers:
        engine.audit(lower, Auditor(lower, reports.append, tolerance))
    try:
        yield
    finally:
        for lower, auditor in zip(lowers, before, strict=True):
            engine.audit(lower, auditor)


def _iterations_at_most(engine: Engine) -> int:
    """Return a number of iterations within which every problem steps."""
    product = 2
    for problem in engine.problems:
        product *= problem.config.unroll_steps * problem.config.gradient_accumulation
    return product + sum(problem.config.warmup_steps for problem in engine.problems)
