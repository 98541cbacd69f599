"""What wins where: for each sweep the best line of code and the best learned weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study.summary import cell

from .tables import AGAINST_NOISE, AGAINST_TAILS

Records = Callable[[str], Mapping[str, Sequence[Any]]]

BASELINE = "ce+meta"
WEIGHTS = ("meta-weight-net", "class-aware")
TITLES: Mapping[str, str] = {
    **{method: title for title, method in {**AGAINST_NOISE, **AGAINST_TAILS}.items()},
    "elr+meta": "ELR",
    "meta-weight-net-normalised+meta+warm-up+early+exponential/one-sided": "Meta-Weight-Net, ELR",
    "class-aware+meta+early/one-sided": "class-aware, ELR",
    "class-aware+meta+balanced+warm-up+exponential/one-sided": "class-aware, Balanced Softmax",
}
"""What each method is called here."""


def overview(records: Records, sweeps: Sequence[str], titles: Sequence[str]) -> str:
    """Return the table in Markdown: a row a sweep, of accuracies after the last step.

    A best method is that of the highest mean.

    Args:
        records: Returns the records of a sweep, by method.
        sweeps: The sweeps.
        titles: What each is called.
    """
    head = ("cross-entropy", "best without learned weights", "best with learned weights")
    lines = ["|  | " + " | ".join(head) + " |", "|:--|" + "--:|" * len(head)]
    for title, sweep in zip(titles, sweeps, strict=True):
        found = {
            method: [record["last"] for record in runs] for method, runs in records(sweep).items()
        }
        # What does not train on the clean samples is told less than the others.
        others = {m: v for m, v in found.items() if m not in ("ce", BASELINE)}
        learned = {m: v for m, v in others.items() if m.startswith(WEIGHTS)}
        simple = {m: v for m, v in others.items() if m not in learned}
        cells = [cell(found[BASELINE], 1), _best(simple), _best(learned)]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best(found: Mapping[str, Sequence[float]]) -> str:
    method = max(found, key=lambda name: statistics.fmean(found[name]))
    return f"{TITLES[method]} {cell(found[method], 1)}"
