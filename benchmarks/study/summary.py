"""The numbers of a sweep: mean and deviation of every method as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Read = Callable[[Record], "float | None"]

COLUMNS: Mapping[str, tuple[str, int, Read]] = {
    "last": ("last (%)", 1, lambda record: record["last"]),
    "best": ("best (%)", 1, lambda record: record["best"]),
    "weight": ("AUC of 1 − weight", 3, lambda record: _auc(record, "weight")),
    "loss": ("AUC of the loss", 3, lambda record: _auc(record, "loss")),
    "margin": ("AUC of the margin", 3, lambda record: _auc(record, "margin")),
    "precision": ("precision of rejected", 3, lambda r: r.get("rejected", {}).get("precision")),
    "recall": ("recall of wrong", 3, lambda record: record.get("rejected", {}).get("recall")),
    "upper": ("steps of the weight network", 0, lambda record: record["upper_steps"]),
    "seconds": ("seconds a run", 0, lambda record: record["seconds"]["all"]),
}


def _auc(record: Record, score: str) -> float | None:
    found: float | None = record["detection"].get(score, {}).get("auc")
    return found


def to_table(records: Mapping[str, Sequence[Record]]) -> str:
    """Return a Markdown table of mean ± standard deviation over the seeds.

    Args:
        records: The records of each method.
    """
    everything = [record for given in records.values() for record in given]
    shown = [name for name, column in COLUMNS.items() if _tells(name, column[2], everything)]
    lines = ["| method | " + " | ".join(COLUMNS[name][0] for name in shown) + " |"]
    lines.append("|:--|" + "--:|" * len(shown))
    for method, given in records.items():
        cells = []
        for name in shown:
            _, digits, read = COLUMNS[name]
            cells.append(cell([value for r in given if (value := read(r)) is not None], digits))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int) -> str:
    """Return mean ± standard deviation; the mean alone of one value, a dash of none."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _tells(name: str, read: Read, records: Sequence[Record]) -> bool:
    values = {read(record) for record in records} - {None}
    # Steps of the weight network are of interest where economies differ in them.
    return len(values - {0}) > 1 if name == "upper" else bool(values)


def to_page(records: Mapping[str, Sequence[Record]], complete: bool) -> str:
    """Return the content of ``summary.md``: the table with notes for its reader."""
    some = next(given[0] for given in records.values() if given)
    setting, protocol = some["asked"]["setting"], some["asked"]["protocol"]
    seeds = sorted({record["asked"]["seed"] for given in records.values() for record in given})
    table = to_table(records)
    notes = [
        f"# {_title(setting)}",
        f"{some['samples']['train']:,} training samples, {some['samples']['meta']:,} clean ones, "
        f"{some['samples']['test']:,} to measure on; {some['asked']['steps']:,} steps of "
        f"{protocol['batch_size']}; seeds {', '.join(map(str, seeds))}.",
        table,
        "Accuracy as mean ± standard deviation over the seeds: after the last step, and the best "
        "of the evaluations during training, chosen on the test data and so optimistic. `+meta`: "
        "the classifier trains on the clean samples as well.",
    ]
    if "AUC" in table:
        notes.append(
            "AUC: how well a small weight, a large loss or a negative margin separates the wrong "
            "labels of the training split from the right ones at the end; 0.5 is chance."
        )
    if "precision" in table:
        notes.append(
            "Precision and recall: of the samples a method left out or put last, the share whose "
            "labels are wrong; and of the wrong labels, the share that were among these."
        )
    if not complete:
        notes.append("Some runs are not finished.")
    made = some["versions"]
    notes.append(
        f"Python {made['python']}, torch {made['torch']}, metaweight {made['metaweight']}, "
        f"{made['device']}, {some['asked']['precision']}, {made['threads']} thread(s), "
        f"{made['processor']}."
    )
    return "\n\n".join(notes) + "\n"


def _title(setting: Mapping[str, Any]) -> str:
    parts = [f"{setting['dataset']}, {setting['network']}"]
    if setting["imbalance_factor"] > 1:
        parts.append(f"imbalance factor {setting['imbalance_factor']:g}")
    if setting["noise"] > 0:
        parts.append(f"{100 * setting['noise']:g} % {setting['noise_kind']} label noise")
    if setting["human_labels"]:
        parts.append(f"human labels ({setting['human_labels']})")
    if setting["tuning"]:
        parts.append("measured on held-out training samples")
    return ", ".join(parts)
