"""Progress of a sweep: the run under way, and all of them with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from metaweight import Engine, Hook

from .run import Run
from .store import Store

_SECONDS = 2.0


class Share(Hook):
    """Tells the share of a run that is done, for others to read, and shows the sweep.

    Args:
        store: Where the runs are.
        run: The run.
        sweep: What shows the sweep.
    """

    only_shows = True

    def __init__(self, store: Store, run: Run, sweep: SweepBar) -> None:
        self._file = store.state_of(run) / "share"
        self._run = run
        self._sweep = sweep
        self._told = 0.0
        self._began = 0.0, 0.0

    def run_start(self, engine: Engine) -> None:
        """Tell where the run starts."""
        self._began = time.monotonic(), self._share(engine)
        self._tell(engine)

    def iteration_end(self, engine: Engine) -> None:
        """Tell every two seconds."""
        if time.monotonic() - self._told > _SECONDS:
            self._tell(engine)

    def _tell(self, engine: Engine) -> None:
        self._told = time.monotonic()
        share = self._share(engine)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(f"{share}")
        began, done = self._began
        text = f"{self._run.method.name}, seed {self._run.seed}: {share:.0%}"
        if share > done:
            left = (self._told - began) * (1 - share) / (share - done)
            text += f", {tqdm.format_interval(left)} left"
        self._sweep.show(text)

    def _share(self, engine: Engine) -> float:
        return engine.run_state.iteration / self._run.steps


class SweepBar:
    """One line: runs done, the run under way, and the time left.

    Args:
        store: Where the runs are.
        runs: All runs.
        shown: Whether to show anything.
    """

    def __init__(self, store: Store, runs: Sequence[Run], shown: bool) -> None:
        self._store = store
        self._runs = runs
        # In a log, where a line cannot be overwritten, one line in half a minute is enough.
        every = 0.5 if sys.stderr.isatty() else 30.0
        self._bar: Any = tqdm(
            total=sum(run.method.cost for run in runs),
            initial=self._done(),
            disable=not shown,
            mininterval=every,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% of all |{bar}| {elapsed}, {remaining} left",
        )

    def show(self, text: str) -> None:
        """Show what is going on."""
        if self._bar.disable:
            return
        finished = sum(self._store.path(run).is_file() for run in self._runs)
        self._bar.set_description(f"{finished}/{len(self._runs)} runs; {text}", refresh=False)
        self._bar.update(max(0.0, self._done() - self._bar.n))

    def close(self) -> None:
        """Leave the line as it stands."""
        self._bar.update(max(0.0, self._done() - self._bar.n))
        self._bar.close()

    def _done(self) -> float:
        return sum(run.method.cost * self._share(run) for run in self._runs)

    def _share(self, run: Run) -> float:
        if self._store.path(run).is_file():
            return 1.0
        try:
            return float((self._store.state_of(run) / "share").read_text() or 0)
        except (OSError, ValueError):
            return 0.0
