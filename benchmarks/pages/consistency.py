"""What pages show of semi-supervised methods: the reports of ``ssl_svhn.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consistency_study.cells import DIVERGENCES, METHODS
from consistency_study.study import spread

from .sweeps import ROOT, MissingRunError

FOLDER = Path("benchmarks/results/consistency")
_FOREIGN = "--foreign 0.75 --labels 10"
_PSEUDO_LABEL = "--divergence kl --method pseudo_label --method pseudo_label+learned"
_MIXMATCH = "--divergence mse --method mixmatch --method mixmatch+learned"
ASKED: Mapping[str, str] = {
    "digits": "",
    "foreign-pseudo-label": f"{_FOREIGN} {_PSEUDO_LABEL} --weight 3",
    "foreign-mixmatch": f"{_FOREIGN} {_MIXMATCH} --weight 30",
    "foreign-pseudo-label-tuned": f"{_FOREIGN} {_PSEUDO_LABEL}",
    "foreign-mixmatch-tuned": f"{_FOREIGN} {_MIXMATCH}",
}
"""The options that make each report."""
_TITLES = {
    "pseudo_label": "Pseudo-Label",
    "pi_model": "Π-model",
    "vat": "VAT",
    "mean_teacher": "Mean Teacher",
    "ict": "ICT",
    "mixmatch": "MixMatch",
    "fixmatch": "FixMatch",
}
Cells = Mapping[str, Mapping[int, Mapping[str, Any]]]


def command(report: str) -> str:
    """Return the command that makes a report."""
    asked = f"{ASKED[report]} " if ASKED[report] else ""
    return f"python benchmarks/ssl_svhn.py {asked}--out {FOLDER / report}"


class Consistency:
    """The reports of semi-supervised methods.

    Args:
        root: Root of the repository whose reports are read.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._read: dict[str, Cells] = {}

    def shown(self, what: str, *arguments: str) -> str:
        """Return ``table REPORT``, ``command REPORT ...``, ``accuracy REPORT CELL WHO`` or ``gain
        REPORT CELL OTHER``.

        A cell is ``METHOD/DIVERGENCE`` or ``supervised``; a gain that of the moving average at the
        end, seed by seed.

        Raises:
            MissingRunError: When a report is missing.
            ValueError: For what no report has.
        """
        shows = {
            "table": self._table,
            "command": lambda *names: "\n```\n" + "\n".join(map(command, names)) + "\n```\n",
            "accuracy": lambda *where: "{:.1f} ± {:.1f}".format(*spread(self._last(*where))),
            "gain": self._gain,
        }
        if what not in shows:
            raise ValueError(f"{what!r} is not shown of consistency; {', '.join(shows)} are.")
        return shows[what](*arguments)

    def _table(self, report: str) -> str:
        means = {
            (method, divergence): spread(self._last(report, f"{method}/{divergence}", "teacher"))[0]
            for method in METHODS
            for divergence in DIVERGENCES
        }
        best = max(means, key=lambda cell: means[cell])
        lines = ["| | MSE | L1 | KL | JS |", "|:--|" + "--:|" * len(DIVERGENCES)]
        for method in METHODS:
            texts = []
            for divergence in DIVERGENCES:
                name = f"{method}/{divergence}"
                student = spread(self._last(report, name, "student"))[0]
                gain = self._gain(report, name, "supervised")
                text = f"{student:.1f} / {means[method, divergence]:.1f} ({gain})"
                texts.append(f"**{text}**" if (method, divergence) == best else text)
            lines.append(f"| {_TITLES[method]} | " + " | ".join(texts) + " |")
        return "\n" + "\n".join(lines) + "\n"

    def _gain(self, report: str, cell: str, other: str) -> str:
        pairs = zip(*(self._last(report, name, "teacher") for name in (cell, other)), strict=True)
        return "{:+.1f} ± {:.1f}".format(*spread([a - b for a, b in pairs]))

    def _last(self, report: str, cell: str, who: str) -> Sequence[float]:
        cells = self._cells(report)
        if cell not in cells:
            raise ValueError(f"{report} has no {cell!r}; it has {', '.join(cells)}.")
        return [run["test"][who][-1] for _, run in sorted(cells[cell].items())]

    def _cells(self, report: str) -> Cells:
        if report not in ASKED:
            raise ValueError(f"{report!r} is not a report; known are {', '.join(ASKED)}.")
        if report not in self._read:
            path = self._root / FOLDER / report / "summary.json"
            if not path.is_file():
                raise MissingRunError(
                    f"{path.relative_to(self._root)} is missing; make it by: {command(report)}"
                )
            self._read[report] = {
                "/".join(filter(None, (found["method"], found["divergence"]))): {
                    int(seed): run for seed, run in found["runs"].items()
                }
                for found in json.loads(path.read_text())["cells"]
            }
        return self._read[report]
