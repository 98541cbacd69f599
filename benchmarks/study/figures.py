"""The figures of a study."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from matplotlib.figure import Figure

from metaweight.plots import (
    per_class_accuracy,
    training_curves,
    weight_against_loss,
    weight_histogram,
)

from .training import LearnedWeights, Outcome


def figures(outcomes: Sequence[Outcome], by_size: bool) -> Iterator[tuple[str, Figure]]:
    """Yield every figure with its file name.

    Args:
        outcomes: All runs.
        by_size: Whether to order the classes by their number of training samples, largest first;
            the order may differ between seeds.
    """
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.run.method.name, []).append(outcome)
    yield (
        "training_curves.png",
        training_curves(
            {
                name: (runs[0].history.steps, [run.history.accuracies for run in runs])
                for name, runs in by_method.items()
            }
        ),
    )
    yield "per_class_accuracy.png", _per_class(by_method, by_size)
    for name, runs in by_method.items():
        learned, file_name = runs[0].learned, re.sub(r"[+/]", "_", name)
        if learned is not None:
            title = f"{name}, seed {runs[0].run.seed}"
            yield f"weight_against_loss_{file_name}.png", _functions(runs[0], learned, title)
            wrong = torch.cat([run.judgement.wrong for run in runs])
            if wrong.any():
                weights = [w for run in runs if (w := run.judgement.weights) is not None]
                figure = weight_histogram(torch.cat(weights), wrong, title=name)
                yield f"weight_histogram_{file_name}.png", figure


def _per_class(by_method: dict[str, list[Outcome]], by_size: bool) -> Figure:
    rows = {
        name: [[row[c] for c in _order(run, by_size)] for run, row in _accuracies(runs)]
        for name, runs in by_method.items()
    }
    orders = {tuple(_order(run, by_size)) for runs in by_method.values() for run in runs}
    if len(orders) == 1:
        return per_class_accuracy(rows, [str(c) for c in orders.pop()])
    places = [str(place + 1) for place in range(len(orders.pop()))]
    return per_class_accuracy(rows, places, title="classes by size, the largest first")


def _accuracies(runs: list[Outcome]) -> Iterator[tuple[Outcome, list[float]]]:
    for run in runs:
        yield run, [float("nan") if a is None else a for a in run.history.per_class]


def _order(outcome: Outcome, by_size: bool) -> list[int]:
    counts = outcome.class_counts
    classes = range(len(counts))
    return sorted(classes, key=lambda c: -counts[c]) if by_size else list(classes)


def _functions(outcome: Outcome, learned: LearnedWeights, title: str) -> Figure:
    sizes: list[list[int]] = [[] for _ in range(max(learned.groups) + 1)]
    members: list[list[int]] = [[] for _ in sizes]
    for label, group in enumerate(learned.groups):
        sizes[group].append(outcome.class_counts[label])
        members[group].append(label)
    shown = sorted(range(len(sizes)), key=lambda group: -max(sizes[group]))
    names = [_group_name(members[group], sizes[group]) for group in shown]
    moments = {
        f"step {step}": [rows[group] for group in shown] for step, rows in learned.functions.items()
    }
    return weight_against_loss(learned.losses, moments, names, title=title)


def _group_name(members: list[int], sizes: list[int]) -> str:
    if len(members) == 1:
        return f"class {members[0]} ({sizes[0]} samples)"
    return f"{len(members)} classes ({min(sizes)} to {max(sizes)} samples)"
