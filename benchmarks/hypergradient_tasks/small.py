"""Measure every method on a small case.

Time and memory are measured in single precision, taking turns; errors against the float64 truth in
both precisions, and over a grid of iterations in double.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from turns import Outcome, first_line, measure

import metaweight

from . import cleaning, logistic, quadratic, ridge
from .case import Case, accuracy
from .methods import Method, methods

CASES: dict[str, Callable[[], Case]] = {
    "quadratic": quadratic.make,
    "ridge": ridge.make,
    "logistic": logistic.make,
    "cleaning": cleaning.make,
}
GRID = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True)
class Effort:
    """The extent of the measurement.

    Attributes:
        rounds: Turns of every contender.
        grid: Iterations at which curves are drawn.
        most: Largest number of iterations of a method.
        steps: Gradients of a turn; as many as fill 0.1 s when left out.
    """

    rounds: int = 3
    grid: tuple[int, ...] = GRID
    most: int = 1000
    steps: int | None = None


QUICK = Effort(rounds=1, grid=(1, 50), most=50, steps=1)


def run(name: str, effort: Effort) -> dict[str, Any]:
    """Measure a task; return its description, a row for every method, and the curves."""
    case = CASES[name]()
    known = methods(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(case, path)
        timed = measure(
            {label: partial(main_step, path, label, effort) for label in known},
            1,
            effort.rounds,
            effort.steps,
            warm_ups=2 if effort.steps is None else 1,
            start="forkserver",
        )
        checked = check(path, known, effort)
    rows = [row(method, case, effort, timed[n], checked[n]) for n, method in known.items()]
    curves = {label: found["curve"] for label, found in checked.items() if found.get("curve")}
    return {"description": describe(case), "rows": rows, "curves": curves}


def check(path: Path, known: Mapping[str, Method], effort: Effort) -> dict[str, dict[str, Any]]:
    """Return each method's accuracy in double precision, found by a process for each library."""
    libraries = {method.library: None for method in known.values()}
    makes = {library: partial(accuracy_step, path, library, effort) for library in libraries}
    outcomes = measure(makes, 1, 0, 1, warm_ups=1, start="forkserver")
    return {
        label: {"failed": outcome.error} if outcome.error is not None else outcome.value[label]
        for label, method in known.items()
        for outcome in (outcomes[method.library],)
    }


def describe(case: Case) -> dict[str, Any]:
    """Return the description of the case for a reader."""
    return {
        "lower parameters": len(case.solution),
        "upper parameters": len(case.theta),
        "condition number": case.condition,
        "truth": case.truth_by,
    }


def iterations(method: Method, effort: Effort) -> int:
    """Return the iterations of a method's main measurement."""
    return 0 if method.iterations is None else min(method.iterations, effort.most)


def load(path: Path) -> Case:
    """Return the case the parent process saved."""
    case: Case = torch.load(path, weights_only=False)
    return case


def main_step(path: Path, label: str, effort: Effort) -> Callable[[], list[float]]:
    """Return a function that computes a method's gradient in single precision, as numbers."""
    case = load(path)
    method = methods(case)[label]
    gradient = method.build(case.to(torch.float32), iterations(method, effort))
    return lambda: gradient().flatten().tolist()


def accuracy_step(path: Path, library: str, effort: Effort) -> Callable[[], dict[str, Any]]:
    """Return a function that computes the accuracy of a library's methods in double precision."""
    case = load(path)

    def judge(method: Method) -> dict[str, Any]:
        def at(number: int) -> dict[str, float]:
            return accuracy(method.build(case, number)().flatten(), case.truth)

        def drawn(number: int) -> list[dict[str, float]]:
            # The curve of a series that has diverged to infinity ends there.
            try:
                return [{"iterations": number, **at(number)}]
            except (ArithmeticError, metaweight.HypergradientError):
                return []

        try:
            grid = effort.grid if method.curve else ()
            curve = [point for k in grid for point in drawn(k)]
            return {"main": at(iterations(method, effort)), "curve": curve, "failed": None}
        except Exception as error:
            return {"failed": first_line(error)}

    def judge_all() -> dict[str, Any]:
        known = methods(case).values()
        return {method.label: judge(method) for method in known if method.library == library}

    return judge_all


def row(
    method: Method, case: Case, effort: Effort, timed: Outcome, checked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a method's row of the table; the first error replaces the numbers."""
    found: dict[str, Any] = {
        "library": method.library,
        "method": method.name,
        "computes": method.computes,
        "K": iterations(method, effort) or None,
        "error fp32": None,
        "cosine fp32": None,
        "error fp64": None,
        "ms": None,
        "CPU ms": None,
        "own MiB": None,
        "failed": timed.error or checked["failed"],
    }
    if timed.error is None:
        found["ms"] = statistics.median(turn.wall for turn in timed.turns) * 1e3
        found["CPU ms"] = statistics.median(turn.cpu for turn in timed.turns) * 1e3
        found["own MiB"] = timed.first_peak - timed.resting
        try:
            single = accuracy(torch.tensor(timed.value, dtype=torch.float64), case.truth)
            found["error fp32"], found["cosine fp32"] = single["error"], single["cosine"]
        except ArithmeticError as error:
            found["failed"] = f"fp32: {first_line(error)}"
    if checked["failed"] is None:
        found["error fp64"] = checked["main"]["error"]
    return found
