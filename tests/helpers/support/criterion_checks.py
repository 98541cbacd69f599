"""Criteria with a state of their own in each of two processes that share out batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Engine, ImplicitProblem
from metaweight.noise import (
    CoTeachingClassifier,
    EarlyLearningClassifier,
    EarlyLearningRegularisation,
    NetworkPair,
    WithCriterion,
)
from metaweight.weighting import DeferredReweighting, DeferredReweightingHook

from .checks import check
from .hook_checks import CLASSES, classes_of
from .shared_out import Net, batches, run_config


class Reweighted(ImplicitProblem):
    """The mean over the batch, which is that of the shares."""

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        losses: Tensor = self.module.criterion(self.module(x), y, reduction="none")
        return losses.mean()


def trained(
    kind: Any, module: Any, rank: int, world: int, hooks: Any = (), **settings: Any
) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), 0.2)
    data = classes_of(batches(3, 5, rank, world))
    low = kind("low", module=module, optimizer=optimizer, train_data_loader=data, **settings)
    Engine([low], run_config(world, train_iters=6), hooks=hooks).run()
    state: dict[str, Tensor] = module.state_dict()
    return state


@check
def weights_deferred(rank: int, world: int, folder: Path) -> Any:
    torch.default_generator.manual_seed(4)
    criterion = DeferredReweighting(F.cross_entropy, [0.2, 1.0, 3.0, 9.0])
    module = WithCriterion(Net(3, CLASSES), criterion)
    return trained(Reweighted, module, rank, world, [DeferredReweightingHook(0.5)])


@check
def taught_by_each_other(rank: int, world: int, folder: Path) -> Any:
    torch.default_generator.manual_seed(4)
    pair = NetworkPair(Net(3, CLASSES), Net(3, CLASSES))
    settings = {"noise_rate": 0.4, "ramp_steps": 3}
    return trained(CoTeachingClassifier, pair, rank, world, **settings)


@check
def early_learning(rank: int, world: int, folder: Path) -> Any:
    criterion = EarlyLearningRegularisation(40, CLASSES)
    module = WithCriterion(Net(3, CLASSES), criterion)
    return trained(EarlyLearningClassifier, module, rank, world)
