"""All cells and seeds: weights chosen on validation, then reported, over several processes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from study.files import write_text

from metaweight.data import LabelledTensors

from .cells import Cell
from .tasks import Protocol, load, task
from .training import History, train

FIRST_TUNING_SEED = 1000
WHO = ("student", "teacher")


@dataclass(frozen=True)
class Options:
    """The options of a study.

    Attributes:
        dataset: Name of the data.
        root: Folder of the data.
        cells: The cells to compare.
        labels: Labelled samples.
        seeds: Seeds of the runs that are reported.
        tuning_seeds: Number of runs to choose a weight by, on other splits than those reported.
        protocol: Settings of every run.
        foreign_share: Share of the pool without a known class; none when left out.
        weight: Consistency weight of every cell; chosen on validation when left out.
        workers: Processes.
        out: Folder of the results.
    """

    dataset: str
    root: Path
    cells: Sequence[Cell]
    labels: int
    seeds: Sequence[int]
    tuning_seeds: int
    protocol: Protocol
    foreign_share: float | None
    weight: float | None
    workers: int
    out: Path


@dataclass(frozen=True)
class Job:
    """One run."""

    cell: Cell
    weight: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its record."""
        parts = [self.cell.method, self.cell.divergence or "none", f"{self.weight:g}"]
        return "-".join([*parts, f"seed{self.seed}.json"])


@dataclass
class Result:
    """A cell's chosen weight and its runs.

    Attributes:
        cell: The cell.
        weight: The weight chosen.
        tuning: Mean validation accuracy of the teacher for each weight tried.
        runs: By seed.
    """

    cell: Cell
    weight: float
    tuning: dict[float, float]
    runs: dict[int, History]

    def last(self, who: str) -> list[float]:
        """Return the test accuracies at the end of the runs."""
        return [run.test[who][-1] for run in self.runs.values()]

    def best(self, who: str) -> list[float]:
        """Return the test accuracies where the validation accuracy was highest."""
        return [
            run.test[who][max(range(len(run.steps)), key=lambda i, v=run.validation[who]: v[i])]
            for run in self.runs.values()
        ]


def run_study(options: Options) -> list[Result]:
    """Train what has no record yet, and return the results in the order of the cells."""
    context: Any = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _begin, (options,)) as pool:
        tuning = _tuned(options, dict(pool.imap_unordered(_run, _tuning_jobs(options))))
        chosen = {cell: max(found, key=lambda w, f=found: f[w]) for cell, found in tuning.items()}
        final = [Job(cell, chosen[cell], seed) for cell in options.cells for seed in options.seeds]
        runs = dict(pool.imap_unordered(_run, final))
    return [
        Result(
            cell,
            chosen[cell],
            tuning[cell],
            {seed: runs[Job(cell, chosen[cell], seed)] for seed in options.seeds},
        )
        for cell in options.cells
    ]


def tried(options: Options, cell: Cell) -> tuple[float, ...]:
    """Return the weights a cell is tried with."""
    fixed = options.weight is not None and cell.divergence is not None
    return (options.weight,) if fixed else cell.weights  # type: ignore[return-value]


def _tuning_jobs(options: Options) -> Iterator[Job]:
    for cell in options.cells:
        weights = tried(options, cell)
        if len(weights) > 1:
            for weight in weights:
                for number in range(options.tuning_seeds):
                    yield Job(cell, weight, FIRST_TUNING_SEED + number)


def _tuned(options: Options, runs: dict[Job, History]) -> dict[Cell, dict[float, float]]:
    """Return the mean validation accuracy of the teacher for each cell and weight."""
    found: dict[Cell, dict[float, float]] = {}
    for cell in options.cells:
        found[cell] = {}
        for weight in tried(options, cell):
            ends = [
                run.validation["teacher"][-1]
                for job, run in runs.items()
                if (job.cell, job.weight) == (cell, weight)
            ]
            found[cell][weight] = statistics.fmean(ends) if ends else 0.0
    return found


_worker: dict[str, Any] = {}
"""Data of a worker process; set once, when it starts."""


def _begin(options: Options) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    data: tuple[LabelledTensors, LabelledTensors] = load(options.dataset, options.root)
    _worker.update(options=options, data=data)


def _run(job: Job) -> tuple[Job, History]:
    """Return a run, from its record if there is one of these settings."""
    options: Options = _worker["options"]
    path = options.out / "runs" / job.file
    settings = {
        "dataset": options.dataset,
        "labels": options.labels,
        "foreign share": options.foreign_share,
        **dataclasses.asdict(options.protocol),
    }
    if path.exists():
        record = json.loads(path.read_text())
        if record["settings"] == settings:
            return job, History(**record["history"])
    history = _trained(options, job)
    record = {"settings": settings, "history": dataclasses.asdict(history)}
    write_text(path, json.dumps(record, allow_nan=False))
    return job, history


def _trained(options: Options, job: Job) -> History:
    given = task(
        options.dataset,
        _worker["data"],
        options.labels,
        job.seed,
        options.protocol,
        options.foreign_share,
    )
    return train(given, job.cell, job.weight, options.protocol, job.seed)


def as_dict(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return results for JSON."""
    return [
        {
            "method": result.cell.method,
            "divergence": result.cell.divergence,
            "weight": result.weight,
            "tuning": [
                {"weight": w, "validation accuracy of the teacher": v}
                for w, v in result.tuning.items()
            ],
            "runs": {str(s): dataclasses.asdict(run) for s, run in result.runs.items()},
        }
        for result in results
    ]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
