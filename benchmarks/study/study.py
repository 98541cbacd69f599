"""All runs of a benchmark, one after the other, and the files they write."""

from __future__ import annotations

import json
import logging
import math
import sys
from typing import Any

import torch
from tqdm import tqdm

from metaweight.data import DatasetUnavailableError

from .arguments import Options
from .figures import figures
from .files import write_figure, write_text
from .problems import Run
from .protocols import Protocol
from .splits import Source, Splits
from .summary import to_page, to_record, to_table
from .training import Outcome, train


def run_study(options: Options) -> int:
    """Run every method on every seed and write the results; return the exit code.

    The summary is written after every run, so that an interruption loses one run at most.
    """
    logging.getLogger("metaweight").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    try:
        source = Source(options.dataset, options.data)
        outcomes = _run_all(options, source)
    except (DatasetUnavailableError, _TooFewSamplesError) as reason:
        print(reason, file=sys.stderr)
        return 2
    for name, figure in figures(outcomes, options.corruption.imbalance_factor > 1):
        write_figure(options.out / name, figure)
    print(to_table(_write_summary(options, outcomes)))
    print(f"\nSummary and figures are in {options.out}.")
    return 0


class _TooFewSamplesError(ValueError):
    """The data cannot be split as asked."""


def _run_all(options: Options, source: Source) -> list[Outcome]:
    outcomes: list[Outcome] = []
    # In a log, where a line cannot be overwritten, one line in ten seconds is enough.
    every = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(unit="step", mininterval=every, dynamic_ncols=True) as bar:
        for seed in options.seeds:
            splits = _split(options, source, seed)
            steps = steps_of(options.protocol, len(splits.train))
            bar.total = steps * len(options.seeds) * len(options.methods)
            for method in options.methods:
                bar.set_description(f"{method.name}, seed {seed}", refresh=False)
                run = Run(method, seed, options.protocol, steps, options.device, options.precision)
                outcomes.append(train(run, splits, bar))
                _write_summary(options, outcomes)
    return outcomes


def _split(options: Options, source: Source, seed: int) -> Splits:
    try:
        protocol = options.protocol
        return source.split(seed, protocol.meta_per_class, options.corruption, protocol.per_class)
    except ValueError as reason:
        raise _TooFewSamplesError(str(reason)) from reason


def steps_of(protocol: Protocol, samples: int) -> int:
    """Return the steps of a run; the same for all methods, whether they add the meta samples."""
    if protocol.steps is not None:
        return protocol.steps
    return (protocol.epochs or 1) * math.ceil(samples / protocol.batch_size)


def _write_summary(options: Options, outcomes: list[Outcome]) -> dict[str, Any]:
    complete = len(outcomes) == len(options.seeds) * len(options.methods)
    record = to_record(options, outcomes, complete)
    write_text(options.out / "summary.json", json.dumps(record, indent=1) + "\n")
    write_text(options.out / "summary.md", to_page(record))
    return record
