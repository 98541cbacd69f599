"""All runs of a study, by one process or several; stopped at any time, and gone on with."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from metaweight import Engine, Hook

from .options import Options
from .progress import Share, SweepBar
from .protocols import Protocol
from .run import Run
from .settings import Source, Splits
from .store import Store
from .training import train


class Deadline(Hook):
    """Ends a run, which is saved, when the time is up.

    Args:
        at: When, by ``time.time()``.
    """

    only_shows = True

    def __init__(self, at: float) -> None:
        self.at = at

    def iteration_end(self, engine: Engine) -> None:
        """End the run as Ctrl-C does, after which it can be resumed."""
        del engine
        if time.time() > self.at:
            signal.raise_signal(signal.SIGINT)


def all_runs(options: Options, source: Source) -> tuple[list[Run], dict[int, Splits]]:
    """Return the runs, seed by seed, and the data of each seed.

    Raises:
        ValueError: When there are too few samples.
    """
    runs: list[Run] = []
    splits: dict[int, Splits] = {}
    for seed in options.seeds:
        splits[seed] = source.split(seed)
        steps = steps_of(options.protocol, len(splits[seed].train))
        runs += [
            Run(
                setting=options.setting,
                method=method,
                seed=seed,
                protocol=options.protocol.of(method),
                steps=steps,
                device=options.device,
                precision=options.precision,
                evaluations=options.evaluations,
            )
            for method in options.methods
        ]
    return runs, splits


def steps_of(protocol: Protocol, samples: int) -> int:
    """Return the steps of a run; the same for all methods, whether they add the clean samples."""
    if protocol.steps is not None:
        return protocol.steps
    return (protocol.epochs or 1) * math.ceil(samples / protocol.batch_size)


def sweep(options: Options, runs: Sequence[Run], splits: dict[int, Splits]) -> bool:
    """Do the runs that are not done; return whether all are.

    The state of a run that is stopped is kept, and the next sweep goes on from there. Several
    processes, of this command or of others, can share one folder: each run is done by one.

    Raises:
        OtherRunError: When a record was made with other settings. Nothing has been trained then.
    """
    store = Store(options.folder)
    for run in runs:
        store.read(run)
    ends = math.inf if options.minutes is None else time.time() + 60 * options.minutes
    bar = SweepBar(store, runs, not options.helps)
    try:
        with _helpers(options, len(runs)) as helpers:
            for run in runs:
                if time.time() >= ends:
                    break
                _do(run, splits[run.seed], store, bar, options, ends)
            _wait(helpers, bar)
    finally:
        bar.close()
    return all(store.read(run) is not None for run in runs)


def _do(
    run: Run, splits: Splits, store: Store, bar: SweepBar, options: Options, ends: float
) -> None:
    with store.claim(run) as mine:
        if not mine or store.read(run) is not None:
            return
        hooks: list[Hook] = [Share(store, run, bar)]
        if ends < math.inf:
            hooks.append(Deadline(ends))
        folder = store.state_of(run)
        try:
            record = train(run, splits, folder, hooks, options.suspicious)
        except KeyboardInterrupt:
            if time.time() > ends:
                return
            raise
        store.write(run, record)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _helpers(options: Options, runs: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes that share the runs with this one, and end them with it."""
    number = 0 if options.helps else min(options.jobs, runs) - 1
    quiet = subprocess.DEVNULL
    found = [subprocess.Popen(options.command, stdout=quiet) for _ in range(number)]
    try:
        yield found
    finally:
        for process in found:
            if process.poll() is None:
                process.terminate()
        for process in found:
            process.wait()


def _wait(helpers: Sequence[Any], bar: SweepBar) -> None:
    while any(process.poll() is None for process in helpers):
        bar.show("the last runs")
        time.sleep(0.5)
