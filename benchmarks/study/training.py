"""One run from start to end, and its record."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaweight import EngineConfig, Hook
from metaweight.averaging import EMAHook
from metaweight.weighting import normalise_weights

from .detection import detection, out_of_fold_suspicions, precision_and_recall, suspicions
from .evaluation import Evaluations, MeasuredEngine, outputs_of
from .memory import peak_memory, start_peak
from .program import Program, build
from .recording import WeightFunctions
from .run import Run
from .settings import Splits
from .suspicious import Suspicious, write_suspicious
from .training_parts import evaluation_transform, is_images
from .versions import versions

_MOMENTS = (0.02, 0.1, 0.3, 0.6, 1.0)
_CHECKPOINTS = 20
_LEAST_STEPS = 25
_BARS = 40


def asked(run: Run) -> dict[str, Any]:
    """Return what decides the result of a run, as it stands in its record."""
    protocol = asdict(run.protocol)
    del protocol["own"]
    protocol["milestones"] = list(protocol["milestones"])
    return {
        "setting": asdict(run.setting),
        "method": run.method.name,
        "seed": run.seed,
        "protocol": protocol,
        "steps": run.steps,
        "precision": run.precision,
        "evaluations": run.evaluations,
    }


def train(run: Run, splits: Splits, folder: Path, hooks: list[Hook], most: int) -> dict[str, Any]:
    """Train as ``run`` specifies, or go on where it was stopped, and measure on the test data.

    Args:
        run: Method, seed and settings.
        splits: The data of its seed.
        folder: Folder of the state of a run that is not finished.
        hooks: Further hooks, such as one that shows progress.
        most: Number of the most suspicious samples to write to ``folder``; 0 for none.

    Returns:
        The record of the run.

    Raises:
        KeyboardInterrupt: When the run was asked to end; it is saved then.
    """
    start_peak()
    program = build(run, splits, folder)
    evaluations = Evaluations(run.steps, run.evaluations)
    functions = _weight_functions(run, program)
    engine = MeasuredEngine(
        program.problems,
        EngineConfig(
            train_iters=run.steps,
            valid_step=evaluations.every,
            device=run.device,
            precision=run.precision,
            channels_last=is_images(splits.train),
            progress=False,
            checkpoint_dir=folder / "checkpoints",
            checkpoint_step=max(_LEAST_STEPS, math.ceil(run.steps / _CHECKPOINTS)),
            keep_last=1,
        ),
        program.dependencies,
        hooks=[evaluations, *program.hooks, *functions, *hooks],
    )
    engine.test_data = splits.test.to(run.device)
    engine.test_transform = evaluation_transform(splits.test)
    engine.evaluations = evaluations
    engine.run(resume="auto")
    engine.eval()
    with ExitStack() as teachers:
        for hook in program.hooks:
            if isinstance(hook, EMAHook):
                teachers.enter_context(hook.applied())
        if not evaluations.curve or evaluations.curve[-1][0] != run.steps:
            engine.measure()
        found = _judged(engine, splits, program, most, folder)
    record = _record(run, splits, evaluations)
    record |= {"upper_steps": engine.reweight.count if functions else 0} | found
    for each in functions:
        record["weights"] |= {
            "losses": _rounded(each.losses),
            "functions": each.weights,
            "groups": [] if program.groups is None else program.groups.tolist(),
        }
    return record


def _record(run: Run, splits: Splits, evaluations: Evaluations) -> dict[str, Any]:
    accuracies = [accuracy for _, accuracy in evaluations.curve]
    return {
        "asked": asked(run),
        "versions": versions(run.device),
        "last": accuracies[-1],
        "best": max(accuracies),
        "curve": [[step, round(accuracy, 4)] for step, accuracy in evaluations.curve],
        "per_class": evaluations.per_class,
        "class_counts": splits.train.class_counts().tolist(),
        "samples": {part: len(getattr(splits, part)) for part in ("train", "meta", "test")},
        "seconds": {
            "all": round(evaluations.seconds, 2),
            "evaluating": round(evaluations.evaluating, 4),
            "processor": round(evaluations.processor_seconds, 2),
        },
        "peak_mib": round(peak_memory()),
    }


def _weight_functions(run: Run, program: Program) -> list[WeightFunctions]:
    if program.groups is None:
        return []
    groups = program.groups
    first = torch.stack([(groups == group).nonzero()[0, 0] for group in groups.unique()])
    moments = sorted({max(1, round(share * run.steps)) for share in _MOMENTS})
    return [WeightFunctions(first, moments)]


def _judged(
    engine: MeasuredEngine, splits: Splits, program: Program, most: int, folder: Path
) -> dict[str, Any]:
    """Judge the labels of the training split by the trained classifier, weights and search."""
    data = splits.train.to(engine.device)
    outputs = outputs_of(engine.classifier, data, engine.test_transform).cpu()
    labels, wrong = splits.train.labels.cpu(), splits.train.wrong_labels.cpu()
    scores = suspicions(outputs, labels)
    found: dict[str, Any] = {}
    if program.groups is not None:
        with torch.no_grad():
            losses = scores["loss"].to(engine.device)
            weights = normalise_weights(engine.reweight(losses, data.labels)).cpu()
        scores["weight"] = -weights
        found["weights"] = _histogram(weights, wrong)
    ranking = "loss"
    search = program.search
    if search is not None:
        # Clean samples that were searched too stand behind those of the training split.
        rejected, rows = search.rejected[: len(data)], search.probabilities[: len(data)]
        found["rejected"] = precision_and_recall(rejected, wrong)
        if len(rows):
            scores |= out_of_fold_suspicions(rows, labels)
            ranking = "out-of-fold margin"
    if most:
        where = scores[ranking].topk(min(most, len(labels))).indices
        table = Suspicious(where, scores[ranking][where], outputs[where].argmax(1))
        write_suspicious(folder.parent, folder.name, table, splits)
    found["detection"] = detection(scores, wrong)
    return found


def _histogram(weights: Tensor, wrong: Tensor) -> dict[str, Any]:
    if not weights.isfinite().all():
        return {}
    top = max(float(weights.max()), 1e-6)
    right, mistaken = (
        torch.histc(part, _BARS, 0.0, top) for part in (weights[~wrong], weights[wrong])
    )
    return {
        "largest": round(top, 5),
        "right": right.int().tolist(),
        "wrong": mistaken.int().tolist(),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
