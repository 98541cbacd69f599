"""Small steps by Python, by a graph of their operations, and compiled, against a hand-written loop.

::

    python benchmarks/speed_captured.py --out benchmarks/results/captured

A turn is a run of some iterations. The first run of a contender, in which its steps are captured
and compiled, is not counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed_toy import Weights, data, hand_written, on_betty
from study.files import write_text
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from turns import Outcome, Step, environment, markdown, measure

from metaweight import SOBA, Config, Engine, ImplicitProblem, Unroll

ITERATIONS = 500
CAPTURES: Mapping[str, str | None] = {"Python": None, "replayed": "replay", "compiled": "compile"}
METHODS: Mapping[str, tuple[Any, int]] = {
    "toy, finite differences": ("darts", 1),
    "toy, SOBA": (SOBA(lr=0.1), 1),
    "toy, ten steps unrolled": (Unroll(), 10),
}
"""The hypergradient and the lower steps for one of the upper problem, by title."""
Row = dict[str, Any]


class Inner(ImplicitProblem):
    """Logistic regression with a penalty for each weight."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        w = self.module.w
        loss = binary_cross_entropy_with_logits(self.module(inputs), labels)
        return loss + 0.5 * (w * self.outer() * w).sum()


class Outer(ImplicitProblem):
    """Its loss on a validation batch."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return binary_cross_entropy_with_logits(self.inner(inputs), labels)


def ours(method: Any, steps: int, capture: str | None, iterations: int) -> Step:
    """Return a run of the program."""
    logging.disable(logging.INFO)
    train, valid = data()
    child, parent = Weights(torch.zeros(20)), Weights(torch.ones(20))
    inner = Inner(
        "inner",
        Config(type=method, unroll_steps=steps),
        module=child,
        optimizer=torch.optim.SGD(child.parameters(), lr=0.1),
        train_data_loader=train,
    )
    outer = Outer(
        "outer",
        module=parent,
        optimizer=torch.optim.SGD(parent.parameters(), lr=1e-4, momentum=0.9),
        train_data_loader=valid,
    )
    engine = Engine.bilevel(
        outer, inner, train_iters=iterations, progress=False, strategy="cpu", capture=capture
    )
    return engine.run


def repeated(make: Callable[[], Callable[[], Any]], iterations: int) -> Step:
    """Return a run of a program that is stepped one by one."""
    step = make()

    def run() -> None:
        for _ in range(iterations):
            step()

    return run


def contenders(title: str, iterations: int) -> dict[str, Callable[[], Step]]:
    """Return the makers of runs, by name."""
    method, steps = METHODS[title]
    found: dict[str, Callable[[], Step]] = {
        name: partial(ours, method, steps, capture, iterations)
        for name, capture in CAPTURES.items()
    }
    if method == "darts":
        found["hand-written"] = partial(repeated, partial(hand_written, steps), iterations)
        found["betty-ml"] = partial(repeated, partial(on_betty, steps), iterations)
    return found


def rows(outcomes: Mapping[str, Outcome], iterations: int) -> list[Row]:
    """Return milliseconds an iteration, and how many times Python's they are: medians of turns."""
    found = []
    by_python = outcomes["Python"]
    for name, outcome in outcomes.items():
        row: Row = {"contender": name, "ms": None, "times Python": None}
        if outcome.error is None:
            pairs = zip(outcome.turns, by_python.turns, strict=True)
            row["ms"] = 1e3 * statistics.median(t.wall for t in outcome.turns) / iterations
            row["times Python"] = statistics.median(a.wall / b.wall for a, b in pairs)
        else:
            row["failed"] = outcome.error
        found.append(row)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure all programs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--program", choices=METHODS, nargs="+", default=[*METHODS])
    parser.add_argument("--out", type=Path, default=Path("results/captured"))
    given = parser.parse_args(words)
    conditions = {**environment(1), "load before": f"{os.getloadavg()[0]:.2f}"}
    report: dict[str, Any] = {}
    for title in given.program:
        makes = contenders(title, given.iterations)
        outcomes = measure(makes, 1, given.rounds, 1, warm_ups=1)
        found = rows(outcomes, given.iterations)
        report[title] = {"environment": conditions, "rows": found}
        print(markdown(found, title), flush=True)
        write_text(given.out / "speed_captured.json", json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
