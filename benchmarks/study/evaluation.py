"""Measurements on test data during a run, and the time that they take."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaweight import Engine, Hook, Problem
from metaweight.data import LabelledTensors

LARGEST_SHARE = 0.05
"""Largest share of a run's time that evaluations take where their number is not given."""
GRID = 100
_TOGETHER = 1000


class Evaluations(Hook):
    """Test accuracy in percent over the course of a run, with the seconds that everything took.

    Args:
        steps: Steps of the run.
        number: Evaluations in the run, the last step's among them; ``None`` for as many of 100 as
            take :data:`LARGEST_SHARE` of its time. The last step's always takes place.

    Attributes:
        curve: The steps and the accuracies.
        per_class: Accuracy of each class at the latest; ``None`` for a class the test data lack.
        evaluating: Seconds of all evaluations.
    """

    only_shows = False

    def __init__(self, steps: int, number: int | None) -> None:
        self.curve: list[tuple[int, float]] = []
        self.per_class: list[float | None] = []
        self.evaluating = 0.0
        self._steps = steps
        self._number = number
        self._before = 0.0, 0.0
        self._started: tuple[float, float] | None = None
        self._expected = 0.0

    @property
    def every(self) -> int:
        """Steps between two moments at which an evaluation may take place."""
        return max(1, math.ceil(self._steps / (self._number or GRID)))

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, in all of its parts."""
        return self._so_far()[0]

    @property
    def processor_seconds(self) -> float:
        """Seconds that the processor's cores worked on it, whatever else they did."""
        return self._so_far()[1]

    def _so_far(self) -> tuple[float, float]:
        wall, processor = self._before
        if self._started is None:
            return wall, processor
        now = _clocks()
        return wall + now[0] - self._started[0], processor + now[1] - self._started[1]

    def run_start(self, engine: Engine) -> None:
        """Start the clock, and measure how long an evaluation takes."""
        self._started = _clocks()
        if self._number is None and isinstance(engine, MeasuredEngine):
            self._expected = engine.time_of_evaluation()

    def run_end(self, engine: Engine) -> None:
        """Stop the clock."""
        del engine
        self._before, self._started = self._so_far(), None

    def is_due(self, step: int) -> bool:
        """Return whether to evaluate at this step."""
        if self._number is not None or step >= self._steps:
            return True
        # The last evaluation has to fit too.
        return self.evaluating + 2 * self._expected <= LARGEST_SHARE * self.seconds

    def add(self, step: int, correct: Tensor, totals: Tensor, seconds: float) -> float:
        """Add an evaluation by right answers and samples of each class; return the accuracy."""
        accuracy = float(100 * correct.sum() / totals.sum())
        shares = (100 * correct / totals).tolist()
        self.per_class = [None if math.isnan(share) else round(share, 4) for share in shares]
        self.curve.append((step, accuracy))
        self.evaluating += seconds
        self._expected = seconds
        return accuracy

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far."""
        return {
            "curve": list(self.curve),
            "per_class": list(self.per_class),
            "evaluating": self.evaluating,
            "seconds": self._so_far(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved measurements."""
        self.curve = [(step, accuracy) for step, accuracy in state["curve"]]
        self.per_class = list(state["per_class"])
        self.evaluating, self._before = state["evaluating"], tuple(state["seconds"])


class MeasuredEngine(Engine):
    """An engine that measures its ``classifier`` on test data; see :meth:`measure`."""

    test_data: LabelledTensors
    test_transform: Any = None
    evaluations: Evaluations

    def validation(self) -> Mapping[str, Any]:
        """Measure if it is due, and add the accuracy to ``evaluations``."""
        if not self.evaluations.is_due(self.global_step):
            return {}
        return {"accuracy": self.measure()}

    def measure(self) -> float:
        """Add the accuracy on the test data to ``evaluations`` and return it."""
        began = time.perf_counter()
        data = self.test_data
        right = outputs_of(self.classifier, data, self.test_transform).argmax(1) == data.labels
        correct = torch.bincount(data.labels[right], minlength=data.num_classes).double().cpu()
        totals = data.class_counts().double().cpu()
        seconds = time.perf_counter() - began
        return self.evaluations.add(self.global_step, correct, totals, seconds)

    def time_of_evaluation(self) -> float:
        """Return the seconds that an evaluation will take, by one of a few samples."""
        data = self.test_data
        some = data.subset(torch.arange(min(len(data), _TOGETHER), device=data.device))
        self.eval()
        began = time.perf_counter()
        outputs_of(self.classifier, some, self.test_transform).cpu()
        seconds = time.perf_counter() - began
        self.train()
        return seconds * len(data) / len(some)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def outputs_of(classifier: Problem, data: LabelledTensors, transform: Any = None) -> Tensor:
    """Return the classifier's outputs for all of ``data``, (N, C), in the mode it is in."""
    with torch.no_grad():
        chunks = [
            classifier(_laid_out(chunk if transform is None else transform(chunk)))
            for chunk in data.inputs.split(_TOGETHER)
        ]
    return torch.cat(chunks).float()


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
