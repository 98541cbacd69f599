"""A program whose hook records what its samples were worth, and the same by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metaweight import (
    Config,
    Engine,
    EngineConfig,
)
from metaweight.data import LabelledTensors
from metaweight.weighting import (
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
)

N, CLASSES = 14, 3


def samples() -> LabelledTensors:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (N,), generator=generator)
    return LabelledTensors(x, y, y.clone(), torch.arange(N), CLASSES)


def batches(sizes: tuple[int, ...] = (4, 4, 3)) -> list[Any]:
    """Batches with indices; the last three samples are in none."""
    data, order = samples(), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    order = order[order < N - 3]
    return [(data.inputs[i], data.labels[i], i) for i in order.split(list(sizes))]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.default_generator.manual_seed(0)
    return nn.Linear(4, CLASSES).double(), MetaWeightNet(4).double()


def program(
    hook: Any,
    loader: Any = None,
    *,
    kind: type[Any] = WeightedClassifier,
    accumulation: int = 1,
    lr: float = 0.0,
    **settings: Any,
) -> Engine:
    """Learned weights; without a learning rate of theirs they depend on the loss alone."""
    net, weigh = networks()
    classifier = kind(
        "classifier",
        Config(gradient_accumulation=accumulation),
        weights="judge",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.5),
        train_data_loader=batches() if loader is None else loader,
    )
    judge = WeightLearner(
        "judge",
        classifier="classifier",
        module=weigh,
        optimizer=torch.optim.SGD(weigh.parameters(), lr),
        train_data_loader=[batches()[0][:2]],
    )
    config = EngineConfig(**{"train_iters": 10, "strategy": "cpu", **settings})
    edges = {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}}
    return Engine([judge, classifier], config, edges, hooks=[hook])
