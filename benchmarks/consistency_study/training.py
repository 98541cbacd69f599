"""One run: a student, its average, and the accuracies of both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, Hook
from metaweight.averaging import EMAHook
from metaweight.consistency import Ramp, RampHook, SemiSupervisedProblem, learn_sample_weights
from metaweight.data import LabelledTensors, TensorLoader

from .cells import Cell
from .tasks import Protocol, Task


@dataclass
class History:
    """The evaluations of a run; accuracies in percent.

    Attributes:
        steps: Steps of the evaluations.
        validation: Accuracies of ``"student"`` and ``"teacher"`` on the validation samples.
        test: The same on the test samples.
        seconds: Seconds of the run, evaluations included.
        weights: Mean learned weight of the pool's samples of known classes, and of foreign ones.
    """

    steps: list[int] = field(default_factory=list)
    validation: dict[str, list[float]] = field(
        default_factory=lambda: {"student": [], "teacher": []}
    )
    test: dict[str, list[float]] = field(default_factory=lambda: {"student": [], "teacher": []})
    seconds: float = 0.0
    weights: dict[str, float] | None = None


def train(task: Task, cell: Cell, weight: float, protocol: Protocol, seed: int) -> History:
    """Train a new student and return the history of the run.

    Args:
        task: Data, network, views.
        cell: Method and divergence.
        weight: Consistency weight at the top of its ramp.
        protocol: Settings for every method.
        seed: Seed of batches, noise and dropout.
    """
    torch.manual_seed(seed)
    average = EMAHook("student", protocol.decay, warm_up="mean_teacher")
    student = _student(task, cell, protocol, average, seed)
    hooks = [RampHook("student", Ramp(weight, end=protocol.warm_up)), average]
    every = max(1, protocol.steps // protocol.evaluations)
    config = EngineConfig(train_iters=protocol.steps, strategy="cpu")
    history = History()
    recorder = _Recorder(task, average, every, history)
    if cell.learned:
        trusted = TensorLoader(
            task.labelled, protocol.labelled_batch, seed=seed + 1, transform=task.weak
        )
        engine = learn_sample_weights(student, trusted, config, hooks=[*hooks, recorder])
        seen = _Weights(engine, len(task.unlabelled), protocol.steps * 4 // 5)
    else:
        graph: Any = {"u2l": {}, "l2u": {}}
        engine = Engine([student], config, graph, hooks=[*hooks, recorder])
    start = time.perf_counter()
    engine.run()
    history.seconds = time.perf_counter() - start
    if cell.learned:
        history.weights = seen.means(task.foreign)
    return history


def _student(
    task: Task, cell: Cell, protocol: Protocol, average: EMAHook, seed: int
) -> SemiSupervisedProblem:
    net = task.network()
    labelled = TensorLoader(task.labelled, protocol.labelled_batch, seed=seed, drop_last=True)
    unlabelled = TensorLoader(
        task.unlabelled, protocol.unlabelled_batch, seed=seed, drop_last=True, with_indices=True
    )
    return SemiSupervisedProblem(
        "student",
        Config(type="unroll") if cell.learned else Config(),
        method=cell.consistency(protocol.epsilon),
        teacher=average,
        augment=task.weak,
        strong_augment=task.strong,
        seed=seed,
        module=net,
        optimizer=torch.optim.Adam(net.parameters(), lr=protocol.lr),
        train_data_loader=(labelled, unlabelled),
    )


class _Recorder(Hook):
    """Evaluates student and average at regular steps."""

    def __init__(self, task: Task, average: EMAHook, every: int, history: History) -> None:
        self._task = task
        self._average = average
        self._every = every
        self._history = history

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step % self._every:
            return
        history, net = self._history, engine.student.module
        history.steps.append(engine.global_step)
        net.eval()
        self._note("student", net)
        with self._average.applied():
            self._note("teacher", net)
        net.train()

    def _note(self, who: str, net: nn.Module) -> None:
        self._history.validation[who].append(accuracy(net, self._task.validation))
        self._history.test[who].append(accuracy(net, self._task.test))


class _Weights:
    """The mean weight that the upper problem gave each sample of the pool late in a run."""

    def __init__(self, engine: Engine, samples: int, after: int) -> None:
        self._total = torch.zeros(samples)
        self._count = torch.zeros(samples)
        self._engine = engine
        self._after = after
        engine.gate.module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, given: Any, weights: Tensor) -> None:
        del module
        indices = given[0].indices
        if self._engine.global_step >= self._after and indices is not None:
            self._total.index_add_(0, indices, weights.detach())
            self._count.index_add_(0, indices, torch.ones_like(weights))

    def means(self, foreign: Tensor) -> dict[str, float]:
        mean = self._total / self._count
        parts = {"known": mean[~foreign], "foreign": mean[foreign]}
        return {name: float(part.nanmean()) for name, part in parts.items()}


@torch.no_grad()
def accuracy(net: nn.Module, data: LabelledTensors, batch: int = 500) -> float:
    """Return the share of right classes, percent."""
    right = [
        (net(x).argmax(1) == y).float().sum()
        for x, y in zip(data.inputs.split(batch), data.labels.split(batch), strict=True)
    ]
    return float(100 * torch.stack(right).sum() / len(data))
