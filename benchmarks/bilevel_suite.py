"""Stochastic bilevel methods on the problems of benchmark_bilevel, ours and jitted JAX programs.

::

    python benchmarks/bilevel_suite.py                      # all records; again to go on
    python benchmarks/bilevel_suite.py --problem quadratic --method SABA
    python benchmarks/bilevel_suite.py --calls 600 --seeds 1 --out results/bilevel_suite

What is compared is the suboptimality of the value function, ``h(θ) - min h`` with the lower problem
solved, against oracle calls (:mod:`bilevel_tasks.counting`) and the processor's seconds. All
contenders compute in double precision on one thread, see the same batches in the same order, and
try the same step sizes, in two orders of batches that are not reported. The setting with the least
suboptimality, a geometric mean over the last quarter of a run and the worse of both, then runs in
other orders. Each run leaves a record.

JAX programs need the extra ``jax``. They run as one compiled loop; compiling is not counted.
BOAT asks for numpy below 2, and runs with later ones: ``pip install --no-deps boat-torch``.
hypertorch of the bilevel literature is not on the Python Package Index, where that name is a
library for hypergraphs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bilevel_tasks.contenders import LIBRARIES, Worker, missing
from bilevel_tasks.problems import PROBLEMS, Problem
from bilevel_tasks.tables import ROUNDING, table
from bilevel_tasks.traces import Settings, Trace
from bilevel_tasks.value import Value
from study.files import write_text
from study.versions import versions

RESULTS = Path(__file__).parent / "results" / "bilevel_suite"
CALLS, SEEDS, LOOKS = 4000, 3, 20
TUNING_SEEDS = (100, 101)
Record = dict[str, Any]


class Measured:
    """A problem, its value function and the folder of its records.

    Args:
        name: Name of the problem.
        folder: Folder of all records.
        calls: Oracle calls of a run.
    """

    def __init__(self, name: str, folder: Path, calls: int) -> None:
        self._name = name
        self._folder = folder / name
        self._calls = calls
        self._made: tuple[Problem, Value] | None = None

    def records(self, library: str, method: str, worker: Worker, seeds: int) -> list[Record]:
        """Return the records of a contender, seed by seed; those that are missing are made."""
        return [
            self._kept(
                file_name(library, method, self._calls, str(seed)),
                lambda seed=seed: self._reported(library, method, worker, seed),  # type: ignore[misc]
            )
            for seed in range(seeds)
        ]

    def _reported(self, library: str, method: str, worker: Worker, seed: int) -> Record:
        tuning = file_name(library, method, self._calls, "tuning")
        tuned = self._kept(tuning, lambda: self._tuned(library, method, worker))
        settings = Settings(tuned["lower_step"], tuned["upper_step"], seed)
        calls = tuned["calls_a_step"]
        looks, every = division(self._calls, calls)
        trace = worker.trace(self._name, method, settings, looks, every)
        steps = [every * (n + 1) for n in range(len(trace.seconds))]
        return {
            **self._of(library, method),
            **asdict(settings),
            "calls_a_step": calls,
            "start": self._suboptimality(self._problem().theta),
            "curve": {
                "calls": [calls * n for n in steps],
                "seconds": trace.seconds,
                "suboptimality": [_number(self._suboptimality(t)) for t in trace.thetas],
            },
            "ms_a_step": 1000 * trace.seconds[-1] / steps[-1] if steps else None,
            "failed": trace.failed,
        }

    def _tuned(self, library: str, method: str, worker: Worker) -> Record:
        """Return the best step sizes."""
        problem = self._problem()
        calls = worker.calls(self._name, method)
        looks, every = division(self._calls, calls)
        found: list[Record] = []
        for lower, upper in product(problem.lower_steps, problem.upper_steps):
            worst = -math.inf
            for seed in TUNING_SEEDS:
                settings = Settings(lower, upper, seed)
                trace = worker.trace(self._name, method, settings, looks, every)
                worst = max(worst, self._ended(trace, looks))
                if math.isinf(worst):
                    break
            found.append({"lower_step": lower, "upper_step": upper, "suboptimality": worst})
        best = min(found, key=lambda each: each["suboptimality"])
        for each in found:
            each["suboptimality"] = _number(each["suboptimality"])
        chosen = {name: best[name] for name in ("lower_step", "upper_step")}
        return {**self._of(library, method), **chosen, "calls_a_step": calls, "tried": found}

    def _of(self, library: str, method: str) -> Record:
        made = {name: metadata.version(name) for name in LIBRARIES[library].versions}
        return {
            "problem": self._name,
            "library": library,
            "method": method,
            "calls": self._calls,
            "versions": {**versions("cpu"), **made},
        }

    def _ended(self, trace: Trace, looks: int) -> float:
        """Return the mean suboptimality in the last quarter; infinity if the run failed."""
        if trace.failed:
            return math.inf
        last = map(self._suboptimality, trace.thetas[-max(1, looks // 4) :])
        # Values below rounding, which may be negative, count as that.
        logarithms = [math.log(max(value, ROUNDING)) for value in last]
        return math.exp(statistics.fmean(logarithms))

    def _suboptimality(self, theta: Any) -> float:
        least = self._kept("minimum.json", lambda: {"minimum": self._value().minimum()})["minimum"]
        return self._value()(torch.as_tensor(theta)) - float(least)

    def _problem(self) -> Problem:
        return self._both()[0]

    def _value(self) -> Value:
        return self._both()[1]

    def _both(self) -> tuple[Problem, Value]:
        if self._made is None:
            problem = PROBLEMS[self._name]()
            self._made = problem, Value(problem)
        return self._made

    def _kept(self, name: str, make: Any) -> Record:
        """Return a record; the one that is there, or one that is made."""
        path = self._folder / name
        if not path.exists():
            write_text(path, json.dumps(make(), indent=1) + "\n")
        found: Record = json.loads(path.read_text())
        return found


def _number(value: float) -> float | None:
    """Return a number that JSON has."""
    return value if math.isfinite(value) else None


def division(calls: int, each: float) -> tuple[int, int]:
    """Return how often a run is looked at, and the steps from one look to the next.

    Args:
        calls: Oracle calls of the run.
        each: Those of a step.
    """
    steps = max(1, int(calls / each))
    looks = min(LOOKS, steps)
    return looks, steps // looks


def file_name(library: str, method: str, calls: int, what: str) -> str:
    """Return the name of a record: ``what`` is a seed, or ``"tuning"``."""
    ending = f"seed{what}" if what.isdigit() else what
    return f"{library} {method} calls{calls} {ending}.json".replace(",", "").replace(" ", "-")


def measure(arguments: argparse.Namespace) -> Mapping[str, list[list[Record]]]:
    """Return the records of all contenders that are asked for, by problem."""
    found: dict[str, list[list[Record]]] = {name: [] for name in arguments.problem or PROBLEMS}
    for library, known in LIBRARIES.items():
        reason = missing(library)
        if reason is not None:
            print(reason)
            continue
        with Worker(library) as worker:
            for name, records in found.items():
                measured = Measured(name, arguments.out, arguments.calls)
                for method in known.methods:
                    if not arguments.method or method in arguments.method:
                        records.append(measured.records(library, method, worker, arguments.seeds))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Make the records that are missing, and print their tables."""
    methods = list(dict.fromkeys(m for known in LIBRARIES.values() for m in known.methods))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problem", action="append", choices=[*PROBLEMS])
    parser.add_argument("--method", action="append", choices=methods)
    parser.add_argument("--calls", type=int, default=CALLS, help="oracle calls of a run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="orders of the batches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    for name, records in measure(arguments).items():
        print(f"\n{name}\n\n{table(records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
