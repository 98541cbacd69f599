"""The sweeps whose results are claimed: what ``accuracy.py`` is given, by name."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.options import Options, parse
from study.store import Store

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/results/accuracy")


class MissingRunError(LookupError):
    """A run whose record a page needs is not there."""


@dataclass(frozen=True)
class Sweep:
    """A sweep whose records are kept.

    Args:
        arguments: What ``accuracy.py`` is given, without methods and results folder.
        methods: The methods.
        folder: Folder of the results in :data:`RESULTS`.
    """

    arguments: str
    methods: Sequence[str]
    folder: str = ""

    @property
    def command(self) -> str:
        """The command that makes all records."""
        return shlex.join(["python", "benchmarks/accuracy.py", *self.words])

    @property
    def words(self) -> list[str]:
        """The command line of the whole sweep."""
        methods = [word for method in self.methods for word in ("--method", method)]
        return [*shlex.split(self.arguments), *methods, "--out", str(RESULTS / self.folder)]

    def options(self) -> Options:
        """Return the options of the command."""
        options = parse(self.words, "", {})
        assert options is not None
        return options

    def records(self, root: Path = ROOT) -> dict[str, list[dict[str, Any]]]:
        """Return the records of each method, seed by seed.

        Raises:
            MissingRunError: Naming the run and the command that makes it.
        """
        options = self.options()
        store = Store(root / options.folder)
        found: dict[str, list[dict[str, Any]]] = {}
        for method in options.methods:
            for seed in options.seeds:
                record = store.read_named(method, seed)
                if record is None:
                    raise MissingRunError(
                        f"{store.path_of(method, seed).relative_to(root)} is missing; make it by: "
                        f"{self.command}"
                    )
                found.setdefault(method.name, []).append(record)
        return found
