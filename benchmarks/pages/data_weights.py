"""What pages show of learned weights of a language model's data."""

from __future__ import annotations

import json
from pathlib import Path

from data_weighting import RESULTS, table

from .sweeps import ROOT, MissingRunError

SEEDS = 3


class DataWeights:
    """The records of ``data_weighting.py``.

    Args:
        root: Root of the repository whose records are read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._folder = root / RESULTS.relative_to(ROOT)

    def shown(self, what: str) -> str:
        """Return ``table``, of all methods and ratings."""
        if what != "table":
            raise ValueError(f"{what!r} is not shown of data weights; table is.")
        paths = [self._folder / f"steps200-seed{seed}.json" for seed in range(SEEDS)]
        for path in paths:
            if not path.exists():
                raise MissingRunError(
                    f"{path.name} is missing in {self._folder}; make it by: python "
                    "benchmarks/data_weighting.py"
                )
        return f"\n{table([json.loads(path.read_text()) for path in paths]).rstrip()}\n"
