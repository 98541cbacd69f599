"""A small reweighting program with batch norm and dropout, for hypergradient tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem
from metaweight.weighting import MetaWeightNet, normalise_weights

from . import zoo


class Judge(zoo.Judge):
    below = "classifier"


class Declared(zoo.Weighed):
    """Losses and weights apart; ``self.cfg`` switches normalisation on."""

    above = "judge"

    def sample_weights(self, losses, batch):
        weights = super().sample_weights(losses, batch)
        return normalise_weights(weights) if self.cfg else weights


class Plain(ImplicitProblem):
    """The same loss in one piece, so that only the loss can be differentiated."""

    def training_step(self, batch):
        inputs, labels = batch
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        return (self.judge(losses if self.cfg == "attached" else losses.detach()) * losses).mean()


def network(dropout: float = 0.0, batch_norm: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16) if batch_norm else nn.Identity(),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(16, 4),
    )


def program(
    kind: type[ImplicitProblem] = Declared,
    *,
    config: Config | None = None,
    extra: Any = None,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    batch_norm: bool = True,
    seed: int = 0,
    lr: float = 0.1,
    momentum: float = 0.0,
    batch_size: int = 20,
    device: str = "cpu",
    net: nn.Module | None = None,
) -> Engine:
    """Return an engine with the problems ``judge`` (upper) and ``classifier`` (lower)."""
    torch.default_generator.manual_seed(seed)
    net = (network(dropout, batch_norm) if net is None else net).to(dtype)
    weights = MetaWeightNet(8).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)

    def batches(number: int) -> list[Any]:
        return [
            (
                torch.randn(batch_size, 6, generator=generator, dtype=torch.float64).to(dtype),
                torch.randint(0, 4, (batch_size,), generator=generator),
            )
            for _ in range(number)
        ]

    classifier = kind(
        "classifier",
        config,
        net,
        torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum),
        train_data_loader=batches(4),
        extra_config=extra,
    )
    judge = Judge(
        "judge",
        None,
        weights,
        torch.optim.SGD(weights.parameters(), lr=0.0),
        train_data_loader=batches(3),
    )
    return Engine(
        [judge, classifier],
        EngineConfig(train_iters=1, device=device),
        {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}},
    )
