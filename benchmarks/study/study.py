"""A study from its command line to its files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metaweight.data import DatasetUnavailableError

from .figures import figures
from .files import write_figure, write_text
from .options import Options, parse
from .run import Run
from .settings import Source
from .store import Store
from .summary import to_page, to_table
from .sweep import all_runs, sweep


def main(arguments: Sequence[str] | None, description: str, defaults: Mapping[str, Any]) -> int:
    """Run what the command line asks for; return the exit code.

    2 for data or settings that cannot be used, 3 when the time was up before all runs were done.
    """
    options = parse(arguments, description, defaults)
    return 0 if options is None else run_study(options)


def run_study(options: Options) -> int:
    """Run every method on every seed and write table and figures; return the exit code."""
    logging.getLogger("metaweight").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    try:
        runs, splits = all_runs(options, Source(options.setting, options.files))
        if not options.helps:
            _say_how(options)
        complete = sweep(options, runs, splits)
    except (DatasetUnavailableError, ValueError, OSError) as reason:
        print(reason, file=sys.stderr)
        return 2
    if options.helps:
        return 0
    _write(options, runs, complete)
    return 0 if complete else 3


def _say_how(options: Options) -> None:
    print(
        f"{options.setting.name}: {options.precision} on {options.device}, "
        f"{options.jobs} process(es) of {options.threads} thread(s)",
        file=sys.stderr,
    )


def _write(options: Options, runs: Sequence[Run], complete: bool) -> None:
    store = Store(options.folder)
    records: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        record = store.read(run)
        if record is not None:
            records.setdefault(run.method.name, []).append(record)
    if records:
        write_text(options.folder / "summary.md", to_page(records, complete))
        for name, figure in figures(records):
            write_figure(options.folder / name, figure)
        print(to_table(records))
    print(f"\nRecords, table and figures are in {options.folder}.")
    if not complete:
        print("Some runs are not finished; the same command goes on with them.")
