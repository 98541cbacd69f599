"""Fill in what pages show of records, between the marks of a page.

A page says what it shows in a comment, and has it up to the next end mark::

    | <!-- mean digits-noise ce+meta -->94.4 ± 0.8<!-- end --> |
    <!-- table digits-noise -->
    ...
    <!-- end -->

=========================================  =========================================================
``table NAME``                             a table of :data:`pages.tables.TABLES`
``command NAME [NAME ...]``                the commands of sweeps, as a block of code
``mean SWEEP METHOD [VALUE [DIGITS]]``     mean over the seeds, of ``last`` unless VALUE says
``spread SWEEP METHOD [VALUE]``            mean ± standard deviation
``gain SWEEP METHOD OTHER [DIGITS]``       mean of METHOD less mean of OTHER, in whole points
``change METHOD SWEEP OTHER``              its mean in SWEEP less that in OTHER, in whole points
``seeds SWEEP``                            number of seeds
``minutes SWEEP [SWEEP ...]``              minutes of a core that all runs took
``machine SWEEP``                          processor, versions and threads of the runs
``detection SWEEP=TITLE ...``              how well scores find the wrong labels of sweeps
``overview SWEEP=TITLE ...``               the best methods of sweeps; a title has ``_`` for a space
``small table``                            the estimator on small data sets
``small gain METHOD OTHER``                its mean accuracy less that of OTHER, in points
``small loss METHOD OTHER``                its largest loss on a set without noise, in points
``weights table``                          learned weights of a language model's data
``ssl WHAT ...``                           :meth:`pages.consistency.Consistency.shown`
``suite table PROBLEM``                    stochastic bilevel methods on a problem
``suite WHAT``                             ``calls`` of each of their runs, or their ``machine``
``measured WHAT ...``                      times and memory: :meth:`pages.measured.Reports.shown`
=========================================  =========================================================
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.summary import COLUMNS, cell

from .claims import SWEEPS
from .consistency import Consistency
from .data_weights import DataWeights
from .detection import detection
from .measured import Reports
from .measured_tables import NAMES
from .measured_tables import TABLES as MEASURED
from .overview import overview
from .small import SmallSets
from .suite import BilevelSuite
from .sweeps import ROOT
from .tables import TABLES

PAGES = (
    "README.md",
    "docs/distributed.md",
    "docs/do_i_need_this.md",
    "docs/faq.md",
    "docs/language_models_at_scale.md",
    "docs/results.md",
    "docs/reweighter.md",
    "docs/speed.md",
    "docs/tutorials/weigh_llm_data.md",
    "benchmarks/README.md",
)
_MARK = re.compile(r"(<!-- ([a-z]+) ([^>\n]*?) -->)(.*?)(<!-- end -->)", re.DOTALL)


class Pages:
    """Texts with what they show of records.

    Args:
        root: Root of the repository whose records are read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._records: dict[str, Mapping[str, Sequence[Any]]] = {}
        self._shows: Mapping[str, Callable[..., str]] = {
            "table": self._table,
            "command": self._command,
            "mean": self._mean,
            "spread": self._spread,
            "gain": self._gain,
            "change": self._change,
            "seeds": self._seeds,
            "minutes": self._minutes,
            "machine": self._machine,
            "detection": self._detection,
            "overview": self._overview,
            "small": SmallSets(root).shown,
            "weights": DataWeights(root).shown,
            "ssl": Consistency(root).shown,
            "suite": BilevelSuite(root).shown,
            "measured": Reports(MEASURED, NAMES, root).shown,
        }

    def rendered(self, text: str) -> str:
        """Return a text with everything between its marks filled in.

        Raises:
            MissingRunError: When a record is missing.
            ValueError: For a mark that says something unknown.
        """
        return _MARK.sub(self._filled, text)

    def _filled(self, mark: re.Match[str]) -> str:
        begin, kind, arguments, _, end = mark.groups()
        if kind not in self._shows:
            raise ValueError(f"{begin} shows {kind!r}; known are {', '.join(self._shows)}.")
        return begin + self._shows[kind](*arguments.split()) + end

    def records(self, sweep: str) -> Mapping[str, Sequence[Any]]:
        """Return the records of a sweep by its name."""
        if sweep not in SWEEPS:
            raise ValueError(f"{sweep!r} is not a sweep; known are {', '.join(SWEEPS)}.")
        if sweep not in self._records:
            self._records[sweep] = SWEEPS[sweep].records(self._root)
        return self._records[sweep]

    def _values(self, sweep: str, method: str, value: str) -> list[float]:
        return [
            found
            for r in self.records(sweep)[method]
            if (found := COLUMNS[value][2](r)) is not None
        ]

    def _table(self, name: str) -> str:
        return f"\n{TABLES[name].text(self.records)}\n"

    def _detection(self, *named: str) -> str:
        sweeps, titles = zip(*(name.split("=", 1) for name in named), strict=True)
        return f"\n{detection(self.records, sweeps, titles)}\n"

    def _overview(self, *named: str) -> str:
        sweeps, titles = zip(*(name.split("=", 1) for name in named), strict=True)
        spaced = [title.replace("_", " ") for title in titles]
        return f"\n{overview(self.records, sweeps, spaced)}\n"

    def _command(self, *names: str) -> str:
        commands = "\n".join(SWEEPS[name].command for name in names)
        return f"\n```\n{commands}\n```\n"

    def _mean(self, sweep: str, method: str, value: str = "last", digits: str = "1") -> str:
        return f"{statistics.fmean(self._values(sweep, method, value)):.{int(digits)}f}"

    def _spread(self, sweep: str, method: str, value: str = "last") -> str:
        return cell(self._values(sweep, method, value), COLUMNS[value][1])

    def _gain(self, sweep: str, method: str, other: str, digits: str = "0") -> str:
        means = [statistics.fmean(self._values(sweep, name, "last")) for name in (method, other)]
        return _difference(means, int(digits))

    def _change(self, method: str, sweep: str, other: str) -> str:
        means = [statistics.fmean(self._values(name, method, "last")) for name in (sweep, other)]
        return _difference(means, 0)

    def _seeds(self, sweep: str) -> str:
        return str(len(SWEEPS[sweep].options().seeds))

    def _minutes(self, *sweeps: str) -> str:
        runs = [run for name in sweeps for given in self.records(name).values() for run in given]
        return f"{sum(run['seconds']['processor'] for run in runs) / 60:.0f}"

    def _machine(self, sweep: str) -> str:
        runs = [run for given in self.records(sweep).values() for run in given]
        made = [run["versions"] for run in runs]
        names = ("processor", "python", "torch", "threads")
        found = {name: sorted({str(one[name]) for one in made}) for name in names}
        joined = {name: " and ".join(values) for name, values in found.items()}
        return (
            f"{joined['threads']} thread(s) of {joined['processor']}, Python {joined['python']}, "
            f"torch {joined['torch']}"
        )


def _difference(means: Sequence[float], digits: int) -> str:
    # Adding 0 makes a 0 that was rounded from below positive.
    return f"{round(means[0] - means[1], digits) + 0.0:.{digits}f}"


def write_pages(root: Path = ROOT) -> list[str]:
    """Fill in all pages and return the names of those that changed."""
    pages = Pages(root)
    changed = []
    for name in PAGES:
        path = root / name
        before = path.read_text()
        after = pages.rendered(before)
        if after != before:
            path.write_text(after)
            changed.append(name)
    return changed
