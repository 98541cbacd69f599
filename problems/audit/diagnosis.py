"""Find the cause of a hypergradient's error by elimination, and advise what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base import vectors
from ..hypergradients.product import Approximation, ConvergedSolve, Status
from .comparison import References
from .report import Agreement, HypergradientReport, agreement


@dataclass(frozen=True)
class Case:
    """The checked hypergradient.

    Attributes:
        problem: Name of the lower problem.
        method: Class name of its hypergradient.
        approximation: How the method approximates derivatives, if it does.
        status: How the product was computed.
        solve: The method with its linear solve converged, if it solves a system.
        is_halved: Whether the problem computes in half precision.
        steps: Number of recorded optimizer steps.
        unseen: Names of what may change the steps in a way neither method nor references see.
    """

    problem: str
    method: str
    status: Status
    solve: ConvergedSolve | None
    approximation: Approximation | None
    is_halved: bool
    steps: int
    unseen: Sequence[str] = ()


def diagnose(
    case: Case, actual: Sequence[Tensor], references: References, tolerance: float
) -> HypergradientReport:
    """Return a report on a product, with advice.

    Args:
        case: The checked hypergradient.
        actual: The product.
        references: Its references.
        tolerance: Largest accepted relative error against the converged method.
    """
    converged = agreement(actual, references.converged)
    unrolled = references.unrolled
    exact = None if unrolled is None else agreement(actual, unrolled)
    advice = [
        *[
            f"{name} may change the steps of problem {case.problem!r}, which neither {case.method} "
            "nor its references see: they are the derivative of the steps without it."
            for name in case.unseen
        ],
        *_numerical(case, converged, references, tolerance),
        *_structural(case, exact, references, tolerance),
    ]
    found = "" if case.solve is None else case.status.describe()
    other = references.another_batch
    return HypergradientReport(
        case.problem,
        case.method,
        converged,
        exact,
        tuple(advice),
        found,
        None if other is None else agreement(other, references.as_configured or other),
    )


def _numerical(
    case: Case, converged: Agreement, references: References, tolerance: float
) -> Iterator[str]:
    if math.isnan(converged.cosine):
        yield (
            f"{case.method} returned numbers that are not finite, or its reference in double "
            "precision did: look for overflow or a division by zero in the losses, and for a "
            "series that diverges."
        )
    elif not references.repeatable:
        yield (
            f"The loss of problem {case.problem!r} changes when it is computed again with "
            "the same random state: it draws dropout or noise from a generator of its own, or "
            "keeps state. Draw from torch's, NumPy's or Python's global generator."
        )
    elif references.no_solve:
        yield (
            f"The linear system of {case.method} has no converged solution to compare with "
            f"({_residual(case.status)}): {references.no_solve}"
        )
    elif converged.relative_error > tolerance:
        yield _blame(case, converged.relative_error, references, tolerance)


def _blame(case: Case, error: float, references: References, tolerance: float) -> str:
    approximation = case.approximation
    if references.as_configured is None:
        return _blame_precision(case, error, 0.0)
    left = vectors.subtract(references.as_configured, references.converged)
    double = _length(left) / max(_length(references.converged), 1e-300)
    if double <= max(tolerance, 0.3 * error):
        return _blame_precision(case, error, double)
    if approximation is None:
        return _blame_solve(case, double)
    setting = f"{approximation.setting}={approximation.alpha:g}"
    if references.eval_error is not None and _length(references.eval_error) <= 0.1 * _length(left):
        return (
            f"Batch norm or dropout bends the loss within the displacement {setting} (relative "
            f"error {error:.2g}, gone with running statistics and without dropout): shorten it."
        )
    return (
        f"The displacement {setting} is too large for this loss (relative error {double:.2g} "
        "even in double precision): shorten it."
    )


def _blame_solve(case: Case, error: float) -> str:
    remedy = "" if case.solve is None else f": {case.solve.remedy}"
    return (
        f"The linear solve of {case.method} has not converged ({_residual(case.status)}; relative "
        f"error {error:.2g} of the hypergradient){remedy}."
    )


def _residual(status: Status) -> str:
    after = f" after {status.iterations} iterations" if status.iterations else ""
    residual = "unknown" if status.residual is None else f"{float(status.residual):.2g}"
    return f"residual {residual}{after}"


def _blame_precision(case: Case, error: float, double: float) -> str:
    remedy = "lengthen it" if case.approximation is not None else "train in double precision"
    if case.is_halved:
        return (
            f"Half precision spoils it (relative error {error:.2g}, {double:.2g} in double "
            "precision): keep full_precision=True, so that its passes run without autocast, "
            "and parameters in single precision."
        )
    what = "the displacement" if case.approximation is not None else "this method"
    return (
        f"Single precision is too coarse for {what} (relative error {error:.2g}, {double:.2g} "
        f"in double precision): {remedy}."
    )


def _structural(
    case: Case, unrolled: Agreement | None, references: References, tolerance: float
) -> Iterator[str]:
    apart = references.detached
    if apart is not None and apart.relative_error > tolerance:
        yield (
            f"The loss of problem {case.problem!r} detaches something computed from its "
            "parameters; a finite difference moves it all the same (cosine "
            f"{apart.cosine:.3f} to the derivative that respects the detach, norm ratio "
            f"{apart.norm_ratio:.3g}): derive the problem from ReweightedProblem, or use "
            "Config(type='unroll')."
        )
    # A method that solves a system differentiates the solution, not the steps towards it.
    if case.solve is None and unrolled is not None and unrolled.cosine < 0.9:
        yield (
            "Its direction is not that of the exact derivative through the last "
            f"{case.steps} optimizer steps (cosine "
            f"{unrolled.cosine:.3f}): where these steps are what you mean to differentiate, "
            "use Config(type='unroll') or an IterativeProblem."
        )


def _length(values: Sequence[Tensor]) -> float:
    return float(vectors.norm(values))
