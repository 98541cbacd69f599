"""Meta-Weight-Net on a ResNet-32 or a transformer through k steps: error, time and peak memory.

The truth is the derivative of the very same steps in float64. The learning rate of the ResNet-32 is
0.01, since at 0.1 this program is chaotic: the rounding error of one product grows a hundredfold
over 8 steps, in the exact derivative as well.
Time is that of the ``k`` training steps and one hypergradient, from the second run of a process
that does nothing else; "peak MiB" is the peak of that process. How much memory of freed activations
the allocator keeps depends on the sizes requested before, so "live MiB" is the peak of the first
run of another process, whose allocator keeps none (glibc; elsewhere it is the first run's peak).
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from turns import Outcome, first_line, measure

from .adjoint import truths
from .case import accuracy
from .unrolled import (
    DIFFERENCE,
    EXACT,
    HIGHER,
    KEPT,
    ONE_SIDED,
    TRAINING,
    Workload,
    contenders,
)
from .workloads import NETWORKS

LR = 0.01


@dataclasses.dataclass(frozen=True)
class Effort:
    """The extent of the measurement.

    Attributes:
        network: One of :data:`~hypergradient_tasks.workloads.NETWORKS`.
        steps: The numbers of steps ``k``.
        size: Samples of a batch.
        trained: Steps the network is trained for beforehand.
        rounds: Processes of every contender for each ``k``.
        threads: Threads of each process.
        lr: Learning rate of the unrolled steps.
    """

    network: str = "resnet32"
    steps: tuple[int, ...] = (1, 2, 4, 8)
    size: int = 100
    trained: int = 20
    rounds: int = 1
    threads: int = 2
    lr: float = LR


EFFORTS = {
    "resnet32": Effort(),
    "transformer": Effort("transformer", steps=(1, 8, 32), size=32, lr=0.05),
}
QUICK = {
    name: dataclasses.replace(effort, steps=(1, 2), size=8, trained=2)
    for name, effort in EFFORTS.items()
}


def run(effort: Effort) -> dict[str, Any]:
    """Measure the task; return its description, a row for every contender and ``k``, the claims."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.pt"
        truth = alone(partial(prepared, path, effort), effort.threads)
        if truth.error is not None:
            raise RuntimeError(f"The truth could not be computed: {truth.error}")
        rows = [
            row(
                label,
                k,
                outcomes,
                alone(
                    partial(contender, path, label, k, effort.lr),
                    effort.threads,
                    returns_memory=True,
                ),
                torch.tensor(truth.value[k], dtype=torch.float64),
            )
            for k in effort.steps
            for label, outcomes in measured(path, k, effort).items()
        ]
    description = {
        "network": effort.network,
        "batch": effort.size,
        "learning rate": effort.lr,
        "trained before": effort.trained,
        "threads": effort.threads,
        "truth": "an adjoint of the same steps written out in float64",
    }
    return {"description": description, "rows": rows, "claims": claims(rows)}


def alone(
    make: Callable[[], Callable[[], Any]],
    threads: int,
    rounds: int = 0,
    *,
    returns_memory: bool = False,
) -> Outcome:
    """Return the measurement of one contender in a process of its own."""
    return measure(
        {"it": make},
        threads,
        rounds,
        1,
        warm_ups=1,
        start="forkserver",
        returns_memory=returns_memory,
    )["it"]


def measured(path: Path, k: int, effort: Effort) -> dict[str, list[Outcome]]:
    """Return the measurements of each contender, in a new process for each round, in turn."""
    found: dict[str, list[Outcome]] = {label: [] for label in contenders()}
    labels = list(found)
    for number in range(effort.rounds):
        turn = number % len(labels)
        for label in labels[turn:] + labels[:turn]:
            make = partial(contender, path, label, k, effort.lr)
            found[label].append(alone(make, effort.threads, rounds=1))
    return found


def contender(path: Path, label: str, k: int, lr: float) -> Callable[[], list[float]]:
    """Return a contender's run, which returns numbers."""
    work: Workload = torch.load(path, weights_only=False)
    run = contenders()[label](dataclasses.replace(work, steps=k, lr=lr))
    return lambda: run().tolist()


def prepared(path: Path, effort: Effort) -> Callable[[], dict[int, list[float]]]:
    """Return a function that saves the workload and computes the truths."""

    def prepare() -> dict[int, list[float]]:
        most = max(effort.steps)
        work = NETWORKS[effort.network](most, effort.size, effort.trained, effort.lr)
        torch.save(work, path)
        found = truths(work, effort.steps)
        return {k: gradient.tolist() for k, gradient in found.items()}

    return prepare


def row(
    label: str, k: int, outcomes: list[Outcome], live: Outcome, truth: torch.Tensor
) -> dict[str, Any]:
    """Return a contender's row of the table; the first error replaces the numbers."""
    failed = next((o.error for o in (*outcomes, live) if o.error is not None), None)
    found: dict[str, Any] = {
        "contender": label,
        "at": k,
        "error": None,
        "cosine": None,
        "s": None,
        "CPU s": None,
        "peak MiB": None,
        "own MiB": None,
        "live MiB": None,
        "failed": failed,
    }
    if failed is None:
        turns = [turn for outcome in outcomes for turn in outcome.turns]
        found["s"] = statistics.median(turn.wall for turn in turns)
        found["CPU s"] = statistics.median(turn.cpu for turn in turns)
        found["peak MiB"] = statistics.median(turn.peak for turn in turns)
        found["own MiB"] = found["peak MiB"] - outcomes[0].resting
        found["live MiB"] = live.first_peak
    if failed is None and label != TRAINING:
        try:
            found |= accuracy(torch.tensor(outcomes[0].value), truth)
        except ArithmeticError as error:
            found["failed"] = first_line(error)
    return found


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims about the unrolled methods, with the values measured."""
    table = {(r["contender"], r["at"]): r for r in rows if r["failed"] is None}
    ks = sorted({r["at"] for r in rows})

    def value(label: str, k: int, key: str) -> float | None:
        found = table.get((label, k))
        return None if found is None else found[key]

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above / below

    def claim(text: str, found: float | None, aim: float | None) -> dict[str, Any]:
        met = None if found is None or aim is None else "yes" if found <= aim else "no"
        return {"claim": text, "found": found, "aim": aim, "met": met}

    low, high = ks[0], ks[-1]
    made = []
    memory = ((EXACT, 1.15), (DIFFERENCE, 1.15), (ONE_SIDED, 1.15), (HIGHER, None))
    for key, (label, aim) in product(("live MiB", "peak MiB"), memory):
        grown = ratio(value(label, high, key), value(label, low, key))
        made.append(claim(f"{label}: {key} at k={high} over k={low}", grown, aim))
    time = ((EXACT, 1.0), (KEPT, 1.0), (DIFFERENCE, 0.75), (ONE_SIDED, 0.75))
    for key, (label, aim), k in product(("s", "CPU s"), time, ks):
        times = ratio(value(label, k, key), value(HIGHER, k, key))
        made.append(claim(f"{label}: {key} over {HIGHER}'s at k={k}", times, aim))
    for label, k in product((DIFFERENCE, ONE_SIDED), ks):
        made.append(claim(f"{label}: relative error at k={k}", value(label, k, "error"), 1e-2))
    return made
