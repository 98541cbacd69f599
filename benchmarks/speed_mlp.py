"""The MLP workload: hyper-cleaning, a weight for each training sample, learned from clean ones.

The task of Franceschi et al. (ICML 2017) on a network of one hidden layer. Numbers are random: the
cost of a step does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from speed_bilevel import Batch, Task
from speed_contenders import bilevel_contenders
from torch import Tensor, nn
from turns import Step

FEATURES, CLASSES = 784, 10


class SampleWeights(nn.Module):
    """``sigmoid(θ_i)`` by the position of a sample, 0.5 at first."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(samples))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the weights of the samples at ``positions``, (B,)."""
        return self.logits[positions].sigmoid()


def mlp_task(
    batch: int = 100,
    width: int = 300,
    samples: int = 5000,
    steps: int = 1,
    batches: int = 10,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Return the task.

    Args:
        batch: Samples of a batch.
        width: Width of the hidden layer.
        samples: Training samples that have a weight.
        steps: Lower steps for each upper one.
        batches: Different training batches.
        dtype: Precision of everything.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        inputs = torch.randn(batch, FEATURES, generator=generator, dtype=dtype)
        labels = torch.randint(0, CLASSES, (batch,), generator=generator)
        return inputs, labels, torch.randint(0, samples, (batch,), generator=generator)

    def modules() -> tuple[nn.Module, nn.Module]:
        layers = (nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))
        return nn.Sequential(*layers), SampleWeights(samples)

    def weigh(weights: Any, losses: Tensor, batch: Batch) -> Tensor:
        del losses
        found: Tensor = weights(batch[2])
        return found

    return Task(
        modules=modules,
        train=[draw() for _ in range(batches)],
        judge=draw(),
        weigh=weigh,
        sgd={"lr": 0.1, "momentum": 0.9},
        steps=steps,
        dtype=dtype,
    )


def mlp_contenders(device: str = "cpu", **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; for ``sizes`` see :func:`mlp_task`."""
    return bilevel_contenders(partial(mlp_task, **sizes), device=device)
