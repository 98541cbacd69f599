"""Searches for wrong labels by further networks, before the classifier trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaweight import Engine, EngineConfig, Problem
from metaweight.data import LabelledTensors
from metaweight.ensembles import OnlineEnsemble, resample, reweight
from metaweight.noise import CrossValidatedConfidence

from .files import write_tensors
from .run import Run

MakeProblem = Callable[[str, LabelledTensors, int], Problem]

JUDGES = 3
# The only setting that uses the rate of wrong labels.
KEPT = 0.6


@dataclass(frozen=True)
class Search:
    """What further networks say of N training samples.

    Attributes:
        rejected: Which samples are left out or put last, (N,), bool.
        weights: Weight of each sample, (N,).
        probabilities: Class probabilities by networks that had not seen the sample, (N, C), or
            (0, C) for a search that gives none.
    """

    rejected: Tensor
    weights: Tensor
    probabilities: Tensor


def search(run: Run, data: LabelledTensors, make_judge: MakeProblem, file: Path) -> Search:
    """Return what the search of the method found; one that is done is read from ``file``."""
    if not file.is_file():
        searches = _cross_validated if run.method.base == "prune" else _by_ensemble
        write_tensors(file, vars(searches(run, data, make_judge)))
    return Search(**torch.load(file, weights_only=True))


def _steps(run: Run) -> int:
    return max(1, run.steps // JUDGES)


def _cross_validated(run: Run, data: LabelledTensors, make_judge: MakeProblem) -> Search:
    folds = CrossValidatedConfidence(
        make_problem=make_judge, folds=JUDGES, steps=_steps(run), device=run.device
    )
    found = folds.run(data)
    rejected = found.issues.mask().cpu()
    return Search(rejected, (~rejected).float(), found.probabilities.float())


def _by_ensemble(run: Run, data: LabelledTensors, make_judge: MakeProblem) -> Search:
    """Search by the scores of networks trained on a third of the samples each."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
    parts = [data.subset(order[part::JUDGES]) for part in range(JUDGES)]
    members = [make_judge(f"member_{number}", part, number) for number, part in enumerate(parts)]
    settings = EngineConfig(
        train_iters=_steps(run),
        valid_step=_steps(run) + 1,
        device=run.device,
        progress=False,
    )
    Engine(members, settings).run()
    scores = OnlineEnsemble(member.module for member in members).score(data)
    rejected = torch.ones(len(data), dtype=torch.bool)
    rejected[resample(scores, 0.0, KEPT).cpu()] = False
    weights = reweight(scores, 0.0, KEPT / 2).cpu()
    return Search(rejected, weights, torch.empty(0, data.num_classes))
