"""What pages show of stochastic bilevel methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bilevel_suite import CALLS, RESULTS, SEEDS, file_name
from bilevel_tasks.contenders import LIBRARIES
from bilevel_tasks.problems import PROBLEMS
from bilevel_tasks.tables import table

from .sweeps import ROOT, MissingRunError


class BilevelSuite:
    """The records of ``bilevel_suite.py``.

    Args:
        root: Root of the repository whose records are read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._folder = root / RESULTS.relative_to(ROOT)

    def shown(self, what: str, problem: str = "") -> str:
        """Return ``table PROBLEM``; ``calls``, those of a run; or ``machine``, of all runs."""
        if what == "calls":
            return f"{CALLS:,}"
        if what == "machine":
            return self._machine()
        if what != "table":
            raise ValueError(f"{what!r} is not shown of the suite; table, calls and machine are.")
        return f"\n{table(self._records(problem))}\n"

    def _records(self, problem: str) -> list[list[dict[str, Any]]]:
        return [
            [
                self._read(problem, file_name(library, name, CALLS, str(seed)))
                for seed in range(SEEDS)
            ]
            for library, known in LIBRARIES.items()
            for name in known.methods
        ]

    def _read(self, problem: str, name: str) -> dict[str, Any]:
        path = self._folder / problem / name
        if not path.exists():
            raise MissingRunError(
                f"{name} is missing in {path.parent}; make it by: python "
                f"benchmarks/bilevel_suite.py --problem {problem}"
            )
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _machine(self) -> str:
        records = [r for name in PROBLEMS for each in self._records(name) for r in each]
        made = {k: v for record in records for k, v in record["versions"].items()}
        processors = sorted({record["versions"]["processor"] for record in records})
        packages = ("torch", "jax", "jaxopt", "boat-torch")
        versions = ", ".join([f"Python {made['python']}", *(f"{n} {made[n]}" for n in packages)])
        return f"one thread of {' or '.join(processors)}, {versions}"
