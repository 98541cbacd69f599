"""Contenders of the ResNet-32 workload that differentiate through the step exactly.

The official algorithm of Meta-Weight-Net written plainly, and metaweight's exact derivative, for
the program of :mod:`speed_resnet32` as a :class:`~speed_bilevel.Task`. Weight decay and momentum
do not enter the official look ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from speed_bilevel import Task, by_losses
from speed_contenders import (
    EXACT,
    EXACT_AGAIN,
    HIGHER_KEPT,
    OFFICIAL,
    TORCHOPT_KEPT,
    bilevel_contenders,
)
from speed_resnet32 import META_LR, SGD, Batches
from torch import nn
from turns import Step

from metaweight.models import ResNet32
from metaweight.weighting import MetaWeightNet

NAMES = (OFFICIAL, EXACT, EXACT_AGAIN, HIGHER_KEPT, TORCHOPT_KEPT)


def small_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of the weight network."""
    return torch.optim.Adam(parameters, lr=META_LR)


def resnet32_task(
    batch: int = 100,
    network: Callable[[], nn.Module] = ResNet32,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Return the task of the ResNet-32 workload.

    Args:
        batch: Samples of a batch.
        network: Makes the network.
        dtype: Precision of everything.
    """
    given = Batches(batch)

    return Task(
        modules=lambda: (network(), MetaWeightNet()),
        train=[(given.x.to(dtype), given.y)],
        judge=(given.meta_x.to(dtype), given.meta_y),
        weigh=by_losses,
        sgd=dict(SGD),
        upper_optimizer=small_adam,
        dtype=dtype,
    )


def official_contenders(
    batch: int = 100, names: Sequence[str] = NAMES, device: str = "cpu"
) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps."""
    return bilevel_contenders(partial(resnet32_task, batch), names, device)
