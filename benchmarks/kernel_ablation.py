"""What each kernel of :mod:`metaweight.problems.kernels` brings, by leaving it out.

::

    python benchmarks/kernel_ablation.py                       # about 20 minutes on 2 quiet cores
    python benchmarks/kernel_ablation.py --task resnet32 --product exact --k 1 4
    python benchmarks/kernel_ablation.py --quick               # a smoke test, in seconds

Programs learn sample weights as in ``hypergradients.py --task resnet32`` and ``transformer``; a
turn is ``k`` training steps and one hypergradient. What is left out, torch computes as ever;
without all of them the function mode is left out too. Variants take turns in one process, each time
from the same start, and the first round only warms up. "times all" is the median over the rounds of
a turn's time over that of the turn with all kernels in the same round; "difference" that of the
hypergradient from the one with all kernels, relative to its length, where rounding grows with the
steps. On a machine that is not quiet, set ``OMP_WAIT_POLICY=passive`` and read "CPU times all":
threads that wait take none. Memory is the peak of the first turn in a process of its own, whose
allocator keeps nothing.

Written to ``--out``: ``kernel_ablation.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_cases import CASES, PRODUCTS, QUICK, TASKS, Case, program
from kernel_variants import ALL, LEFT_OUT, without
from study.files import write_text
from torch import Tensor
from turns import Step, environment, markdown, measure

Row = dict[str, Any]


def timed(path: Path, case: Case) -> list[Row]:
    """Return a row for every variant of a case, after turns in this process."""
    run, variants = program(path, case), LEFT_OUT[case.task]
    walls: dict[str, list[float]] = {name: [] for name in variants}
    cpus: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, Tensor] = {}
    for _ in range(case.rounds + 1):
        for name, left_out in variants.items():
            with without(left_out):
                wall, cpu = time.perf_counter(), time.process_time()
                found[name] = run().double()
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)

    def row(name: str) -> Row:
        own, most = walls[name][1:], walls[ALL][1:]
        return {
            "contender": name,
            "at": case.k,
            "s": statistics.median(own),
            "min s": min(own),
            "times all": ratio(own, most),
            "min times all": min(own) / min(most),
            "CPU times all": ratio(cpus[name][1:], cpus[ALL][1:]),
            "difference": float((found[name] - found[ALL]).norm() / found[ALL].norm()),
            "turns": {"s": walls[name], "CPU s": cpus[name]},
        }

    return [row(name) for name in variants]


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def step_alone(path: Path, case: Case, left_out: Collection[str]) -> Step:
    """Return a turn of one variant, made without those kernels too."""
    with without(left_out):
        run = program(path, case)

    def step() -> None:
        with without(left_out):
            run()

    return step


def peaks(path: Path, case: Case, threads: int) -> list[Row]:
    """Return the peak memory of every variant, each in a process of its own, one by one."""
    rows: list[Row] = []
    for name, left_out in LEFT_OUT[case.task].items():
        makes = {name: partial(step_alone, path, case, left_out)}
        settings = {"warm_ups": 1, "start": "forkserver", "returns_memory": True}
        outcome = measure(makes, threads, 0, 1, **settings)[name]
        if outcome.error is not None:
            raise RuntimeError(f"{case.task} without {name}: {outcome.error}")
        own = outcome.first_peak - outcome.resting
        row: Row = {"contender": name, "at": case.k}
        row |= {"peak MiB": outcome.first_peak, "own MiB": own}
        rows.append(row | {"own times all": own / (rows[0]["own MiB"] if rows else own)})
    return rows


def table(rows: list[Row], title: str) -> str:
    """Return rows as Markdown, without single turns."""
    return markdown([{k: v for k, v in row.items() if k != "turns"} for row in rows], title)


class Report:
    """What has been measured so far, a table for each title.

    Args:
        conditions: Machine, versions and load.
        out: Folder to write to.
    """

    def __init__(self, conditions: dict[str, Any], out: Path) -> None:
        self._conditions = conditions
        self._out = out
        self._tables: dict[str, list[Row]] = {}

    def add(self, title: str, rows: list[Row]) -> None:
        """Print rows of the table with this title, and write all tables."""
        self._tables.setdefault(title, []).extend(rows)
        print(table(rows, title), flush=True)
        found = {
            name: {"environment": self._conditions, "rows": rows}
            for name, rows in self._tables.items()
        }
        parts = [table(rows, name) for name, rows in self._tables.items()]
        parts.append(", ".join(f"{name}: {value}" for name, value in self._conditions.items()))
        write_text(self._out / "kernel_ablation.json", json.dumps(found, indent=2))
        write_text(self._out / "kernel_ablation.md", "\n\n".join(parts) + "\n")


def main(given: Sequence[str] | None = None) -> int:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, nargs="+", default=[*TASKS])
    parser.add_argument("--product", choices=PRODUCTS, nargs="+", default=[*PRODUCTS])
    parser.add_argument("--k", type=int, nargs="+", help="numbers of steps")
    parser.add_argument("--rounds", type=int, help="of every case, instead of its own")
    parser.add_argument("--quick", action="store_true", help="tiny batches, a round each")
    parser.add_argument("--only", choices=("time", "memory"), help="both when left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/kernel_ablation"))
    asked = parser.parse_args(given)
    torch.set_num_threads(asked.threads)
    cases = [
        case._replace(rounds=asked.rounds or case.rounds)
        for case in (QUICK if asked.quick else CASES)
        if case.task in asked.task and case.product in asked.product
        if asked.k is None or case.k in asked.k
    ]
    conditions = {**environment(asked.threads), "load before": f"{os.getloadavg()[0]:.2f}"}
    report = Report(conditions, asked.out)
    with tempfile.TemporaryDirectory() as folder:
        paths = {task: Path(folder) / task for task in TASKS}
        for task in dict.fromkeys(case.task for case in cases):
            torch.manual_seed(0)
            most = max(case.k for case in cases if case.task == task)
            torch.save(TASKS[task](most, asked.quick), paths[task])
        for case in cases if asked.only != "memory" else ():
            report.add(f"{case.task}, {case.product}", timed(paths[case.task], case))
        for case in cases if asked.only != "time" else ():
            if case.memory:
                rows = peaks(paths[case.task], case, asked.threads)
                report.add(f"{case.task}, {case.product}, memory", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
