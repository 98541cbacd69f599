"""Samples, labels and problems that the tables of what users get wrong about tools share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metaweight import ConfigurationError, Engine, EngineConfig, GraphError, data, weighting

from .bad_input import Row
from .small import problem

LOGITS = torch.arange(12.0).reshape(4, 3)
LABELS = torch.tensor([0, 1, 2, 0])
SHARES = torch.tensor([0.2, 0.4, 0.6, 0.8])
IMAGES = torch.zeros(2, 5, 8, 8)
LINEAR = nn.Linear(1, 1)
WEIGHT_NET = weighting.MetaWeightNet()
CLASS_AWARE = weighting.ClassAwareWeightNet(torch.arange(3))
LARGE, FEW = LABELS + 5, LABELS[:2]


def labelled(number: int = 12, **changes: Any) -> data.LabelledTensors:
    labels = torch.arange(number) % 3
    parts = {
        "inputs": torch.zeros(number, 1, 8, 8),
        "labels": labels,
        "clean_labels": labels.clone(),
        "indices": torch.arange(number),
        "num_classes": 3,
    }
    return data.LabelledTensors(**(parts | changes))  # type: ignore[arg-type]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def refused(
    words: str, act: Callable[[], object], error: type[Exception] = ConfigurationError
) -> Row:
    return Row(error, words, lambda _: act())


def engine(*problems: Any) -> Engine:
    return Engine(problems, EngineConfig(strategy="cpu", train_iters=1))


def parts() -> dict[str, Any]:
    optimizer = torch.optim.SGD(LINEAR.parameters(), 0.1)
    return {"module": LINEAR, "optimizer": optimizer, "train_data_loader": [torch.ones(1, 1)]}


def unknown(argument: str, kind: Any) -> Row:
    """A problem that is told of a peer by a name that no problem of its engine has."""
    words = f"'a' was made with {argument}='b', which is none of the other … (chase)"
    return refused(
        words, lambda: engine(kind("a", **{argument: "b"}, **parts()), problem()), GraphError
    )
