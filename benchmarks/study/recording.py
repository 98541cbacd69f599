"""Measurements during a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metaweight import Engine, Hook, Problem
from metaweight.data import LabelledTensors

LARGEST_LOSS = 10.0


@dataclass
class History:
    """Test accuracy in percent after some of the steps."""

    steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    per_class: list[float | None] = field(default_factory=list)
    """Accuracy of each class at the latest evaluation; ``None`` for a class the test data lack."""


class MeasuredEngine(Engine):
    """An engine that measures its ``classifier`` on test data; see :meth:`measure`."""

    test_data: LabelledTensors
    test_transform: Any = None

    def validation(self) -> Mapping[str, Any]:
        """Measure, and append the accuracy to ``history``."""
        correct, totals = self.measure()
        share = 100 * correct / totals
        accuracy = float(100 * correct.sum() / totals.sum())
        self.history.steps.append(self.global_step)
        self.history.accuracies.append(accuracy)
        self.history.per_class = [None if math.isnan(s) else s for s in share.tolist()]
        return {"accuracy": accuracy}

    def measure(self) -> tuple[Tensor, Tensor]:
        """Return right answers and samples per class, both (C,), in double precision."""
        data = self.test_data
        right = outputs_of(self.classifier, data, self.test_transform).argmax(1) == data.labels
        correct = torch.bincount(data.labels[right], minlength=data.num_classes)
        return correct.double().cpu(), data.class_counts().double().cpu()


def outputs_of(classifier: Problem, data: LabelledTensors, transform: Any = None) -> Tensor:
    """Return the classifier's outputs for all of ``data``, (N, C), in the mode it is in."""
    with torch.no_grad():
        chunks = [
            classifier(chunk if transform is None else transform(chunk))
            for chunk in data.inputs.split(1000)
        ]
    return torch.cat(chunks).float()


class Bar(Hook):
    """Counts the steps of all runs on one progress bar.

    Args:
        bar: The bar, whose total is the steps of all runs.
    """

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def iteration_end(self, engine: Engine) -> None:
        del engine
        self._bar.update()


class WeightFunctions(Hook):
    """Evaluates the weight network on a grid of losses at several steps of a run.

    Args:
        classes: One class of each group that has its own function.
        moments: Steps after which to evaluate.
    """

    def __init__(self, classes: Tensor, moments: list[int]) -> None:
        self.losses = torch.linspace(0, LARGEST_LOSS, 101)
        self.weights: dict[int, list[list[float]]] = {}
        self._classes = classes
        self._moments = frozenset(moments)

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step not in self._moments:
            return
        groups, points = len(self._classes), len(self.losses)
        losses = self.losses.repeat(groups).to(engine.device)
        classes = self._classes.repeat_interleave(points).to(engine.device)
        with torch.no_grad():
            weights = engine.reweight(losses, classes)
        self.weights[engine.global_step] = weights.view(groups, points).tolist()
