"""Remedies for wrong labels without an upper problem, by name.

Each remedy changes the data or the loss of a single classifier; its steps are those of every other
method. Remedies that first train further networks to find wrong labels (folds, members) take as
many steps for these in total as for the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from metaweight.problems import Problem
from torch import Tensor, nn

from metaweight import Engine, EngineConfig, Hook, ImplicitProblem
from metaweight.averaging import EMAHook
from metaweight.data import LabelledTensors
from metaweight.ensembles import OnlineEnsemble, resample, reweight
from metaweight.noise import (
    CrossValidatedConfidence,
    GeneralisedCrossEntropy,
    HardBootstrappingLoss,
    OnlineConfidentLearning,
    OnlineConfidentLearningHook,
    SoftBootstrappingLoss,
    SymmetricCrossEntropy,
    WithCriterion,
    mixup,
    mixup_loss,
)

Loss = Callable[[ImplicitProblem, Any], Tensor]
MakeProblem = Callable[[str, LabelledTensors, int], Problem]

JUDGES = 3
# Chosen from 0.2, 1, 8 and 32 on seeds 100 and 101.
MIXUP_ALPHA = 32.0
EMA_BETA = 0.99
# The only setting that uses the rate of wrong labels.
KEPT = 0.6


@dataclass(frozen=True)
class Remedy:
    """Data, loss and hooks of a classifier.

    Attributes:
        data: Its training data.
        loss: ``loss(problem, batch)``; batches are ``(inputs, labels, positions)``.
        hooks: Further hooks.
        wrap: Makes the problem's module from the network.
        rejected: Which samples of the data were found to be wrong, (N,); ``None`` without a search.
    """

    data: LabelledTensors
    loss: Loss
    hooks: Sequence[Hook] = ()
    wrap: Callable[[nn.Module], nn.Module] = field(default=lambda network: network)
    rejected: Tensor | None = None


def of_logits(criterion: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return the loss of a batch by a criterion of logits and labels."""
    return lambda problem, batch: criterion(problem.module(batch[0]), batch[1])


CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "soft-bootstrapping": SoftBootstrappingLoss,
    "hard-bootstrapping": HardBootstrappingLoss,
    "gce": GeneralisedCrossEntropy,
    "sce": SymmetricCrossEntropy,
}


def remedy(
    name: str, data: LabelledTensors, make_judge: MakeProblem, steps: int, device: str
) -> Remedy:
    """Return the remedy with this name.

    Args:
        name: One of :data:`REMEDIES`.
        data: The training samples.
        make_judge: Makes a problem, by its name, data and number, to train a network that finds
            wrong labels.
        steps: Steps of the classifier.
        device: Device of the training.
    """
    if name in CRITERIA:
        return Remedy(data, of_logits(CRITERIA[name]()))
    plain = Remedy(data, of_logits(F.cross_entropy))
    if name == "mixup":
        return replace(plain, loss=_mixup_loss)
    if name == "ema":
        average = EMAHook("classifier", EMA_BETA, warm_up="mean_teacher", validate_teacher=True)
        return replace(plain, hooks=[average])
    if name == "ocl":
        criterion = OnlineConfidentLearning(data.num_classes)
        return replace(
            plain,
            loss=lambda problem, batch: criterion(problem.module(batch[0]), batch[1]),
            hooks=[OnlineConfidentLearningHook()],
            wrap=lambda network: WithCriterion(network, criterion),
        )
    if name == "prune":
        return _pruned(data, make_judge, steps, device)
    return _by_ensemble(name, data, make_judge, steps, device)


REMEDIES = (*CRITERIA, "mixup", "ema", "ocl", "prune", "ensemble-resample", "ensemble-reweight")


def _mixup_loss(problem: ImplicitProblem, batch: Any) -> Tensor:
    mixed = mixup(batch[0], batch[1], MIXUP_ALPHA)
    return mixup_loss(problem.module(mixed.inputs), mixed.labels_a, mixed.labels_b, mixed.d)


def _pruned(data: LabelledTensors, make_judge: MakeProblem, steps: int, device: str) -> Remedy:
    search = CrossValidatedConfidence(
        make_problem=make_judge, folds=JUDGES, steps=max(1, steps // JUDGES), device=device
    )
    found = search.run(data)
    kept = found.pruned()
    return Remedy(kept, of_logits(F.cross_entropy), rejected=found.issues.mask().cpu())


def _by_ensemble(
    name: str, data: LabelledTensors, make_judge: MakeProblem, steps: int, device: str
) -> Remedy:
    """Return a remedy by the scores of networks trained on a third of the samples each."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
    parts = [data.subset(order[part::JUDGES]) for part in range(JUDGES)]
    members = [make_judge(f"member_{number}", part, number) for number, part in enumerate(parts)]
    settings = EngineConfig(
        train_iters=max(1, steps // JUDGES), valid_step=steps + 1, device=device
    )
    Engine(members, settings).run()
    scores = OnlineEnsemble(member.module for member in members).score(data)
    kept = torch.zeros(len(data), dtype=torch.bool)
    kept[resample(scores, 0.0, KEPT).cpu()] = True
    if name == "ensemble-resample":
        chosen = data.subset(kept.to(data.device))
        return Remedy(chosen, of_logits(F.cross_entropy), rejected=~kept)
    weights = reweight(scores, 0.0, KEPT / 2).to(device)

    def weighted(problem: ImplicitProblem, batch: Any) -> Tensor:
        losses = F.cross_entropy(problem.module(batch[0]), batch[1], reduction="none")
        return (weights[batch[2]] * losses).mean()

    return Remedy(data, weighted, rejected=~kept)
