"""The networks whose training steps are unrolled: a ResNet-32, and a small transformer.

The images are scikit-learn's digits enlarged to 32 × 32; the texts are random words, and their
class is the quarter of the vocabulary that most of them are from. Both networks have been trained
for a few steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from speed_transformer import CLASSES, TextClassifier, attention_differentiable_twice
from torch.nn import functional as F

from .unrolled import Batch, Workload

WORDS, LENGTH = 1000, 64
Draw = Callable[[], Batch]


def resnet32(steps: int, size: int, trained: int, lr: float) -> Workload:
    """Return the workload of a ResNet-32; for the arguments see :func:`transformer`."""
    from metaweight.data import load_digits
    from metaweight.models import ResNet32

    generator = torch.Generator().manual_seed(0)
    data, _ = load_digits(test_size=1)

    def draw() -> Batch:
        chosen = torch.randint(0, len(data.labels), (size,), generator=generator)
        images = F.interpolate(data.inputs[chosen], size=32, mode="bilinear")
        return images.expand(-1, 3, -1, -1).mul(2).sub(1).contiguous(), data.labels[chosen]

    net = ResNet32(generator=generator)
    work = Workload(steps, net, [draw() for _ in range(steps)], draw())
    return _trained(work, draw, trained, lr)


def transformer(steps: int, size: int, trained: int, lr: float) -> Workload:
    """Return the workload of two encoders of width 128 on texts of 64 tokens.

    Args:
        steps: Most steps that are unrolled.
        size: Samples of a batch.
        trained: Steps the network is trained for beforehand.
        lr: Learning rate of the unrolled steps.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        tokens = torch.randint(0, WORDS, (size, LENGTH), generator=generator)
        return tokens, tokens.mul(CLASSES).div(WORDS, rounding_mode="floor").mode(1).values

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TextClassifier(WORDS, LENGTH, width=128, layers=2, heads=4)
    work = Workload(
        steps,
        net,
        [draw() for _ in range(steps)],
        draw(),
        kernels=attention_differentiable_twice,
    )
    return _trained(work, draw, trained, lr)


NETWORKS: Mapping[str, Callable[[int, int, int, float], Workload]] = {
    "resnet32": resnet32,
    "transformer": transformer,
}


def _trained(work: Workload, draw: Draw, steps: int, lr: float) -> Workload:
    """Train the network of a workload, then set the learning rate of what is unrolled."""
    optimizer, net = work.optimizer(work.net), work.net
    for _ in range(steps):
        inputs, labels = draw()
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    net.zero_grad()
    return dataclasses.replace(work, lr=lr)
