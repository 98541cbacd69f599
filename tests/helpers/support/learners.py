"""A small linear classifier and what learns a setting of its loss from clean samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight.weighting import WeightLearner

from .zoo import over


def learner(
    classifier: Any, name: str, module: nn.Module, optimizer: Any, clean: Any, steps: int
) -> Any:
    """An engine in which the classifier's peer of that name is learned."""
    upper = WeightLearner(
        name,
        classifier="classifier",
        module=module,
        optimizer=optimizer,
        train_data_loader=[clean],
    )
    return over(upper, classifier, train_iters=steps)


def batches(number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Eight samples each, of five features and three classes."""
    source = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 5, generator=source, dtype=torch.float64),
            torch.randint(3, (8,), generator=source),
        )
        for _ in range(number)
    ]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Linear(5, 3).double()
