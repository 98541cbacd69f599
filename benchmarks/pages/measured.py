"""What pages show of measured times and memory: the rows that a benchmark's JSON holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .sweeps import ROOT, MissingRunError

FOLDER = Path("benchmarks/results")
PEERS = ("betty-ml", "higher", "torchopt", "jax", "boat-torch")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A number of a report.

    Args:
        title: Title of its table in the report.
        contender: The contender whose row it is in.
        key: Its column.
        form: How it is written, such as ``".2f"``.
        at: Size of the row, for a quantity that grows.
        scale: What the number is multiplied by, such as 100 for one in percent.
    """

    title: str
    contender: str
    key: str
    form: str = ".2f"
    at: int | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Measured:
    """A table of a report.

    Args:
        report: Name of the report, of :data:`COMMANDS`.
        columns: Titles of the columns, that of the rows first.
        rows: The cells of each row, by its title; ``None`` for an empty one.
    """

    report: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell | None]]


COMMANDS: Mapping[str, str] = {
    "speed/speed": "python benchmarks/speed.py --check --out benchmarks/results/speed",
    "speed/kept/speed": (
        "MALLOC_TRIM_THRESHOLD_=67108864 MALLOC_MMAP_THRESHOLD_=33554432 "
        "python benchmarks/speed.py --workload resnet32 --out benchmarks/results/speed/kept"
    ),
    "speed/growth": "python benchmarks/speed.py --grow all --out benchmarks/results/speed",
    "unrolled/resnet32/hypergradients": (
        "python benchmarks/hypergradients.py --task resnet32 --steps 1 4 8 "
        "--out benchmarks/results/unrolled/resnet32"
    ),
    "unrolled/transformer/hypergradients": (
        "python benchmarks/hypergradients.py --task transformer "
        "--out benchmarks/results/unrolled/transformer"
    ),
    "lm_cost/lm_cost": (
        "python benchmarks/lm_cost.py --width 512 --layers 8 --words 8000 "
        "--out benchmarks/results/lm_cost"
    ),
    "lm_cost/long/lm_cost": (
        "python benchmarks/lm_cost.py --width 256 --length 512 --batch 4 --clean 1 --rounds 3 "
        "--method central forward 'plain, math kernel' 'central, math kernel' "
        "--out benchmarks/results/lm_cost/long"
    ),
    "scaling/scaling": "python benchmarks/scaling.py --out benchmarks/results/scaling",
    "input/speed_input": "python benchmarks/speed_input.py --out benchmarks/results/input",
    "captured/speed_captured": (
        "python benchmarks/speed_captured.py --out benchmarks/results/captured"
    ),
    "kernels/kernel_ablation": (
        "python benchmarks/kernel_ablation.py --product exact --only time "
        "--out benchmarks/results/kernels"
    ),
}
"""The command that makes each report."""


class Reports:
    """The reports of benchmarks that measure time and memory.

    Args:
        tables: The tables that pages show.
        names: Short names of contenders.
        root: Root of the repository whose reports are read.
    """

    def __init__(
        self, tables: Mapping[str, Measured], names: Mapping[str, str], root: Path = ROOT
    ) -> None:
        self._tables = tables
        self._names = names
        self._root = root
        self._read: dict[str, Mapping[str, Any]] = {}

    def shown(self, what: str, *arguments: str) -> str:
        """Return ``table NAME``, ``command REPORT``, ``machine REPORT``, ``value REPORT TITLE
        CONTENDER KEY [FORM [SIZE]]``, ``ratio REPORT TITLE CONTENDER OTHER [KEY [SIZE]]`` or
        ``growth REPORT TITLE CONTENDER KEY FROM TO``.

        Titles and keys are written with ``_`` for a space; contenders by their short names. A
        growth is the ratio of the value at the size TO over that at the size FROM.

        Raises:
            MissingRunError: When a report is missing.
            ValueError: For what no report has.
        """
        shows = {
            "table": self._table,
            "command": lambda report: f"\n```\n{COMMANDS[report]}\n```\n",
            "machine": self._machine,
            "value": self._value,
            "ratio": self._ratio,
            "growth": self._growth,
        }
        if what not in shows:
            raise ValueError(f"{what!r} is not shown of reports; {', '.join(shows)} are.")
        return shows[what](*arguments)

    def _table(self, name: str) -> str:
        table = self._tables[name]
        lines = ["| " + " | ".join(table.columns) + " |"]
        lines.append("|:--|" + "--:|" * (len(table.columns) - 1))
        for title, cells in table.rows.items():
            texts = ["" if c is None else self._text(table.report, c) for c in cells]
            lines.append(f"| {title} | " + " | ".join(texts) + " |")
        return "\n" + "\n".join(lines) + "\n"

    def _machine(self, report: str) -> str:
        found = [table["environment"] for table in self._report(report).values()]
        threads = sorted({str(one["threads"]) for one in found})
        one = found[0]
        peers = [f"{name} {one[name]}" for name in PEERS if name in one]
        versions = ", ".join([f"Python {one['python']}", f"torch {one['torch']}", *peers])
        return f"{' or '.join(threads)} thread(s) of {one['processor']}, {versions}"

    def _value(
        self,
        report: str,
        title: str,
        contender: str,
        key: str,
        form: str = ".2f",
        at: str | None = None,
    ) -> str:
        return self._text(report, replace(self._cell(title, contender, key, at), form=form))

    def _ratio(
        self,
        report: str,
        title: str,
        contender: str,
        other: str,
        key: str = "median_ms",
        at: str | None = None,
    ) -> str:
        cells = [self._cell(title, name, key, at) for name in (contender, other)]
        return self._quotient(report, *cells)

    def _growth(
        self, report: str, title: str, contender: str, key: str, start: str, end: str
    ) -> str:
        cells = [self._cell(title, contender, key, at) for at in (end, start)]
        return self._quotient(report, *cells)

    def _cell(self, title: str, contender: str, key: str, at: str | None) -> Cell:
        if contender not in self._names:
            known = ", ".join(self._names)
            raise ValueError(f"{contender!r} is no short name of a contender; {known} are.")
        size = None if at is None else int(at)
        return Cell(_spaced(title), self._names[contender], _spaced(key), at=size)

    def _quotient(self, report: str, above: Cell, below: Cell) -> str:
        return f"{self._number(report, above) / self._number(report, below):.2f}"

    def _text(self, report: str, cell: Cell) -> str:
        text = format(cell.scale * self._number(report, cell), cell.form)
        # A small negative number is no "-0.0".
        return text if float(text) else text.removeprefix("-")

    def _number(self, report: str, cell: Cell) -> float:
        rows: Sequence[Row] = self._report(report).get(cell.title, {}).get("rows", [])
        for row in rows:
            if row["contender"] == cell.contender and row.get("at") == cell.at:
                found = row.get(cell.key)
                if found is not None:
                    return float(found)
        raise ValueError(
            f"{report}.json has no {cell.key!r} of {cell.contender!r} in {cell.title!r}."
        )

    def _report(self, name: str) -> Mapping[str, Any]:
        if name not in COMMANDS:
            raise ValueError(f"{name!r} is not a report; known are {', '.join(COMMANDS)}.")
        if name not in self._read:
            path = self._root / FOLDER / f"{name}.json"
            if not path.is_file():
                raise MissingRunError(
                    f"{path.relative_to(self._root)} is missing; make it by: {COMMANDS[name]}"
                )
            self._read[name] = json.loads(path.read_text())
        return self._read[name]


def _spaced(name: str) -> str:
    return name.replace("_", " ")
