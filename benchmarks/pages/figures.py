"""The figures of the documentation, each with a mark of the records it was drawn from."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from study.figures import histogram, weighting

from .claims import SWEEPS
from .sweeps import ROOT

FOLDER = Path("docs/images")
_KEY = "Records"


@dataclass(frozen=True)
class Drawing:
    """A figure of a method in a sweep.

    Args:
        sweep: Name of the sweep.
        method: The method.
        draw: Draws it from the records, one a seed.
    """

    sweep: str
    method: str
    draw: Callable[[list[dict[str, Any]]], Figure]

    def records(self, root: Path) -> list[dict[str, Any]]:
        """Return the records it is drawn from."""
        return SWEEPS[self.sweep].records(root)[self.method]


FIGURES: Mapping[str, Drawing] = {
    "weight_against_loss.png": Drawing(
        "digits-tailed-noise", "class-aware+meta", lambda runs: weighting(runs[0], "")
    ),
    "weight_histogram.png": Drawing(
        "digits-tailed-noise", "class-aware+meta", lambda runs: histogram(runs, "")
    ),
}


def mark(records: Any) -> str:
    """Return a mark of records: equal records have equal ones."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


def mark_of(path: Path) -> str | None:
    """Return the mark of the records that a figure was drawn from."""
    with Image.open(path) as image:
        return image.info.get(_KEY)


def write_figures(root: Path = ROOT) -> list[str]:
    """Draw the figures whose records have changed and return their names."""
    changed = []
    for name, drawing in FIGURES.items():
        path, records = root / FOLDER / name, drawing.records(root)
        if path.is_file() and mark_of(path) == mark(records):
            continue
        content = io.BytesIO()
        figure = drawing.draw(records)
        figure.savefig(content, format="png", dpi=120, metadata={_KEY: mark(records)})
        path.write_bytes(content.getvalue())
        changed.append(str(FOLDER / name))
    return changed
