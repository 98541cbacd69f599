"""How well scores find wrong labels: a table over sweeps of the same methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.summary import cell

Records = Callable[[str], Mapping[str, Sequence[Any]]]

SCORES: Mapping[str, tuple[str, str]] = {
    "the loss, cross-entropy": ("ce+meta", "loss"),
    "its margin": ("ce+meta", "margin"),
    "1 − weight, Meta-Weight-Net": ("meta-weight-net-normalised+meta/one-sided", "weight"),
    "the loss under it": ("meta-weight-net-normalised+meta/one-sided", "loss"),
    "1 − weight, class-aware": ("class-aware+meta/one-sided", "weight"),
    "the loss under it ": ("class-aware+meta/one-sided", "loss"),
    "the loss, early-learning regularisation": ("elr+meta", "loss"),
    "out-of-fold loss": ("prune+meta", "out-of-fold loss"),
    "cleanlab's self-confidence": ("prune+meta", "cleanlab self_confidence"),
    "cleanlab's normalised margin": ("prune+meta", "cleanlab normalized_margin"),
    "cleanlab's weighted entropy": ("prune+meta", "cleanlab confidence_weighted_entropy"),
}
"""By title, the method whose networks give the score, and its name in the records."""


def detection(records: Records, sweeps: Sequence[str], titles: Sequence[str]) -> str:
    """Return the table in Markdown: AUC and precision of each score, sweep by sweep.

    Precision is that of as many samples as there are wrong labels, those with the highest scores.

    Args:
        records: Returns the records of a sweep, by method.
        sweeps: The sweeps.
        titles: What each is called in the head of its columns.
    """
    head = [f"{what}, {title}" for title in titles for what in ("AUC", "precision")]
    lines = ["| score | " + " | ".join(head) + " |", "|:--|" + "--:|" * len(head)]
    for title, (method, score) in SCORES.items():
        cells = []
        for sweep in sweeps:
            found = [record["detection"][score] for record in records(sweep)[method]]
            cells.append(cell([one["auc"] for one in found], 3))
            cells.append(cell([100 * one["precision"] for one in found], 1))
        lines.append(f"| {title.strip()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
