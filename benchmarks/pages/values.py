"""What a page can show of the records of accuracy: tables, means, differences, commands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.summary import COLUMNS, cell


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: Its title.
        sweep: Name of the sweep.
        value: Name of the value, of :data:`~study.summary.COLUMNS`.
        methods: Methods in place of those of the rows, by these.
    """

    title: str
    sweep: str
    value: str = "last"
    methods: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of methods against sweeps.

    Args:
        rows: The method of each row, by the row's title.
        columns: The columns.
        best: Whether to mark the best of each column.
    """

    rows: Mapping[str, str]
    columns: Sequence[Column]
    best: bool = False

    def text(self, records: Callable[[str], Mapping[str, Sequence[Any]]]) -> str:
        """Return the table in Markdown."""
        cells: list[list[str]] = []
        for column in self.columns:
            given, (_, digits, read) = records(column.sweep), COLUMNS[column.value]
            found = [
                [v for r in given.get(column.methods.get(m, m), ()) if (v := read(r)) is not None]
                for m in self.rows.values()
            ]
            means = [statistics.fmean(values) if values else float("-inf") for values in found]
            texts = [cell(values, digits) if values else "" for values in found]
            if self.best:
                top = means.index(max(means))
                texts[top] = f"**{texts[top]}**"
            cells.append(texts)
        lines = ["| method | " + " | ".join(column.title for column in self.columns) + " |"]
        lines.append("|:--|" + "--:|" * len(self.columns))
        for title, *row in zip(self.rows, *cells, strict=True):
            lines.append(f"| {title} | " + " | ".join(row) + " |")
        return "\n".join(lines)
