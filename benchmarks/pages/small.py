"""What pages show of the estimator on small data sets."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from small_sets import NOISES, RESULTS, Case, cases_of, name_of, table

from .sweeps import ROOT, MissingRunError

SEEDS = 5


class SmallSets:
    """The records of ``small_sets.py``.

    Args:
        root: Root of the repository whose records are read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._folder = root / RESULTS.relative_to(ROOT)
        self._found: Mapping[Case, Mapping[str, float]] = {}

    def shown(self, what: str, *methods: str) -> str:
        """Return ``table``; ``gain A B``, of all; or ``loss A B``, the most without noise."""
        if what == "table":
            return f"\n{table(self._records())}\n"
        names = [name.replace("-", " ") for name in methods]
        gains = {case: found[names[0]] - found[names[1]] for case, found in self._records().items()}
        if what == "gain":
            return f"{statistics.fmean(gains.values()):.1f}"
        if what != "loss":
            raise ValueError(f"{what!r} is not shown of small sets; table, gain and loss are.")
        of_sets: dict[str, list[float]] = {}
        for case, gain in gains.items():
            if case.noise == "none":
                of_sets.setdefault(case.samples, []).append(gain)
        return f"{-min(map(statistics.fmean, of_sets.values())):.1f}"

    def _records(self) -> Mapping[Case, Mapping[str, float]]:
        if not self._found:
            self._found = {case: self._read(case) for case in cases_of(False, SEEDS, [*NOISES])}
        return self._found

    def _read(self, case: Case) -> Mapping[str, float]:
        path = self._folder / name_of(case)
        if not path.exists():
            raise MissingRunError(
                f"{path.name} is missing in {self._folder}; make it by: python "
                "benchmarks/small_sets.py"
            )
        found: Mapping[str, float] = json.loads(path.read_text())["accuracy"]
        return found
