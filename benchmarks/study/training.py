"""One run from start to end, and its results."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from metaweight import EngineConfig, Hook
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors
from metaweight.weighting import normalise_weights

from .problems import Run, build, evaluation_transform
from .recording import Bar, History, MeasuredEngine, WeightFunctions, outputs_of
from .splits import Splits

_MOMENTS = (0.02, 0.1, 0.3, 0.6, 1.0)


@dataclass(frozen=True)
class LearnedWeights:
    """The weight network over the course of a run, and its weights at the end.

    Args:
        losses: Grid of losses, (L,).
        functions: For each recorded step, weights on the grid, (G, L).
        groups: Group of each class, (C,).
    """

    losses: list[float]
    functions: dict[int, list[list[float]]]
    groups: list[int]


@dataclass(frozen=True)
class Judgement:
    """Losses, and weights if any, of a trained classifier on the training split.

    Args:
        losses: Losses of the labels as given, (N,).
        weights: Learned ones, (N,), with mean 1; ``None`` for a method that learns none.
        wrong: Which labels are wrong, (N,).
        found: Share of the rejected samples whose labels are wrong, and share of the wrong labels
            that were rejected; ``None`` for a method that rejects none.
    """

    losses: Tensor
    weights: Tensor | None
    wrong: Tensor
    found: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run found."""

    run: Run
    history: History
    class_counts: list[int]
    seconds: float
    learned: LearnedWeights | None
    judgement: Judgement
    upper_steps: int
    """Steps of the weight network; 0 without one."""


def train(run: Run, splits: Splits, bar: tqdm[Any]) -> Outcome:
    """Train as ``run`` specifies and measure on the test data.

    Args:
        run: Method, seed and settings.
        splits: The data of its seed.
        bar: Counts the steps.
    """
    began = time.perf_counter()
    program = build(run, splits)
    hooks: list[Hook] = [Bar(bar), *program.hooks]
    functions = None
    if program.groups is not None:
        functions = WeightFunctions(_representatives(program.groups), _moments(run.steps))
        hooks.append(functions)
    engine = MeasuredEngine(
        program.problems,
        EngineConfig(
            train_iters=run.steps,
            valid_step=max(1, run.steps // run.protocol.evaluations),
            device=run.device,
        ),
        program.dependencies,
        hooks=hooks,
    )
    engine.test_data = splits.test.to(run.device)
    engine.test_transform = evaluation_transform(splits)
    engine.history = History()
    engine.run()
    engine.eval()
    with ExitStack() as teachers:
        for hook in program.hooks:
            if isinstance(hook, EMAHook):
                teachers.enter_context(hook.applied())
        if engine.history.steps[-1:] != [run.steps]:
            engine.validation()
        judgement = _judge(engine, splits.train.to(run.device), functions is not None)
    learned = None
    if functions is not None and program.groups is not None:
        learned = LearnedWeights(
            functions.losses.tolist(), functions.weights, program.groups.tolist()
        )
    if program.rejected is not None and program.data is not None:
        found = precision_and_recall(program.rejected, program.data.wrong_labels.cpu())
        judgement = replace(judgement, found=found)
    counts = splits.train.class_counts().tolist()
    seconds = time.perf_counter() - began
    upper_steps = 0 if learned is None else engine.reweight.count
    return Outcome(run, engine.history, counts, seconds, learned, judgement, upper_steps)


def _judge(engine: MeasuredEngine, data: LabelledTensors, learned: bool) -> Judgement:
    outputs = outputs_of(engine.classifier, data, engine.test_transform)
    losses = F.cross_entropy(outputs, data.labels, reduction="none")
    weights = None
    if learned:
        with torch.no_grad():
            weights = normalise_weights(engine.reweight(losses, data.labels)).cpu()
    return Judgement(losses.cpu(), weights, data.wrong_labels.cpu())


def precision_and_recall(rejected: Tensor, wrong: Tensor) -> tuple[float, float]:
    """Return the share of rejected labels that are wrong, and of wrong labels rejected."""
    hits = float((rejected & wrong).sum())
    return hits / max(1, int(rejected.sum())), hits / max(1, int(wrong.sum()))


def _representatives(groups: Tensor) -> Tensor:
    return torch.stack([(groups == group).nonzero()[0, 0] for group in groups.unique()])


def _moments(steps: int) -> list[int]:
    return sorted({max(1, round(share * steps)) for share in _MOMENTS})
