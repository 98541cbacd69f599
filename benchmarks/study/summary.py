"""The numbers of a study: every run as JSON, mean and deviation of every method as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sklearn.metrics import roc_auc_score

from .arguments import Options
from .training import Judgement, Outcome
from .versions import versions


def to_record(options: Options, outcomes: Sequence[Outcome], complete: bool) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        options: The options.
        outcomes: The runs finished so far.
        complete: Whether these are all runs.
    """
    runs = [_run(outcome) for outcome in outcomes]
    arguments = asdict(options) | {
        "methods": [method.name for method in options.methods],
        "data": str(options.data),
        "out": str(options.out),
    }
    return {
        "benchmark": options.benchmark,
        "complete": complete,
        "arguments": arguments,
        "versions": versions(options.device),
        "methods": {
            method.name: _over_seeds([run for run in runs if run["method"] == method.name])
            for method in options.methods
        },
        "runs": runs,
    }


def to_table(record: dict[str, Any]) -> str:
    """Return a Markdown table of mean ± standard deviation over the seeds."""
    columns = {"last": "last (%)", "best": "best (%)"}
    detects = any("weight_auc" in run or "loss_auc" in run for run in record["runs"])
    if detects:
        columns |= {"weight_auc": "AUC of 1 − weight", "loss_auc": "AUC of the loss"}
    if any("precision" in run for run in record["runs"]):
        columns |= {"precision": "precision of rejected", "recall": "recall of wrong"}
    if len({run["upper_steps"] for run in record["runs"]} - {0}) > 1:
        columns["upper_steps"] = "steps of the weight network"
    columns["seconds"] = "seconds a run"
    lines = ["| method | " + " | ".join(columns.values()) + " |"]
    lines.append("|:--|" + "--:|" * len(columns))
    for name, values in record["methods"].items():
        cells = [_cell(values.get(column), column) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_page(record: dict[str, Any]) -> str:
    """Return the content of ``summary.md``: the table with notes for its reader."""
    arguments, made_with = record["arguments"], record["versions"]
    corruption, protocol = arguments["corruption"], arguments["protocol"]
    noise = f"{100 * corruption['noise']:g} % {corruption['noise_kind']} label noise"
    notes = [
        f"# {record['benchmark']}: {arguments['dataset']}",
        f"Imbalance factor {corruption['imbalance_factor']:g}, {noise}, "
        f"{protocol['meta_per_class']} clean meta samples a class; "
        f"{_steps(record)} steps, seeds {', '.join(str(s) for s in arguments['seeds'])}.",
        to_table(record),
        _learning_rates(protocol),
        "Test accuracy as mean ± standard deviation over the seeds: after the last step, and the "
        "best of the evaluations during training, chosen on the test data and so optimistic. "
        "`+meta`: the classifier trains on the meta samples as well.",
    ]
    if "AUC" in notes[2]:
        notes.append(
            "AUC: how well a small weight, or a large loss, separates the wrong labels of the "
            "training split from the right ones at the end; 0.5 is chance."
        )
    if "precision" in notes[2]:
        notes.append(
            "Precision and recall: of the samples a method left out or put last, the share whose "
            "labels are wrong; and of the wrong labels, the share that were among these."
        )
    if not record["complete"]:
        notes.append("Some runs are not finished.")
    notes.append(
        f"Python {made_with['python']}, torch {made_with['torch']}, metaweight "
        f"{made_with['metaweight']}, {made_with['device']}, {made_with['threads']} thread(s), "
        f"{made_with['processor']}."
    )
    return "\n\n".join(notes) + "\n"


def _learning_rates(protocol: dict[str, Any]) -> str:
    given, learned = protocol["learning_rate"], protocol["learned_learning_rate"]
    other = "" if learned in (None, given) else f" ({learned:g} under learned weights)"
    return (
        f"Learning rate of the classifier {given:g}{other}, of the weight network "
        f"{protocol['meta_learning_rate']:g}."
    )


def _steps(record: dict[str, Any]) -> str:
    return ", ".join(str(steps) for steps in sorted({run["steps"] for run in record["runs"]}))


def _run(outcome: Outcome) -> dict[str, Any]:
    history = outcome.history
    best = max(history.accuracies)
    return {
        "method": outcome.run.method.name,
        "seed": outcome.run.seed,
        "steps": outcome.run.steps,
        "last": history.accuracies[-1],
        "best": best,
        "best_step": history.steps[history.accuracies.index(best)],
        "per_class": history.per_class,
        "class_counts": outcome.class_counts,
        "history": {"steps": history.steps, "accuracies": history.accuracies},
        "upper_steps": outcome.upper_steps,
        "seconds": outcome.seconds,
    } | _detection(outcome.judgement)


def _detection(judgement: Judgement) -> dict[str, float]:
    wrong, losses, weights = judgement.wrong, judgement.losses, judgement.weights
    # Only one kind of labels, or a run that diverged.
    if not wrong.any() or wrong.all() or not losses.isfinite().all():
        return {}
    found = {
        "wrong_labels": float(wrong.double().mean()),
        "loss_auc": float(roc_auc_score(wrong, losses)),
    }
    if judgement.found is not None:
        found["precision"], found["recall"] = judgement.found
    if weights is not None and weights.isfinite().all():
        found["weight_auc"] = float(roc_auc_score(wrong, 1 - weights))
        found["mean_weight_right"] = float(weights[~wrong].mean())
        found["mean_weight_wrong"] = float(weights[wrong].mean())
    return found


def _over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ("last", "best", "loss_auc", "weight_auc", "precision", "recall")
    columns += ("upper_steps", "seconds")
    return {
        column: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for column in columns
        if (values := [run[column] for run in runs if column in run])
    }


def _cell(value: dict[str, float | None] | None, column: str) -> str:
    if value is None:
        return "–"
    digits = 3 if column.endswith(("auc", "precision", "recall")) else 1
    text = f"{value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {value['std']:.{digits}f}"
