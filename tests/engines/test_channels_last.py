"""Programs on images laid out channels last: the same numbers, and no tensor left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.data.batches import move_batch
from support.devices import DEVICES
from support.reweighting import Declared, Judge
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    Neumann,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
)
from metaweight.weighting import MetaWeightNet

CHANNELS_LAST = torch.channels_last
METHODS = {
    "darts": FiniteDifference(),
    "reweighting": Reweighting(),
    "reweighting, one-sided": Reweighting(derivative="one_sided"),
    "reweighting, forward": Reweighting(derivative="forward_mode"),
    "sama": SAMA(alpha=0.01),
    "neumann": Neumann(iterations=2, alpha=0.1),
    "cg": ConjugateGradient(iterations=2, damping=10.0),
    "nystrom": Nystrom(rank=3, damping=10.0),
    "penalty": Penalty(strength=1e4, steps=2),
    "unroll": Unroll(),
    "unroll, forward over reverse": Unroll(product="forward_over_reverse"),
    "unroll, difference": Unroll(product="finite_difference"),
    "unroll, one-sided": Unroll(product="one_sided"),
    "unroll, kept graphs": Unroll(memory="full"),
}


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 4),
        )
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        output: Tensor = self.layers(x)
        return output


def images(number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(4, (6,), generator=generator),
        )
        for _ in range(number)
    ]


def run(
    method: Any, channels_last: bool, device: str = "cpu"
) -> tuple[Convolutional, list[Tensor]]:
    torch.default_generator.manual_seed(0)
    net, weights = Convolutional().double(), MetaWeightNet(8).double()
    steps = 2 if isinstance(method, Unroll) else 1
    classifier = Declared(
        "classifier",
        Config(type=method, unroll_steps=steps),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        train_data_loader=images(4, 1),
    )
    judge = Judge(
        "judge",
        None,
        weights,
        torch.optim.SGD(weights.parameters(), lr=0.1),
        train_data_loader=images(3, 2),
    )
    gradients: list[Tensor] = []
    judge.grad_callback = lambda: gradients.extend(
        p.grad.cpu().clone() for p in weights.parameters()
    )  # type: ignore[method-assign, union-attr, misc]
    place = {"strategy": "default", "device": device}
    over(judge, classifier, train_iters=4, channels_last=channels_last, **place).run()
    return net, gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS)
def test_hypergradients_are_the_same(name: str, device: str) -> None:
    """To rounding of double precision, divided by the steps of differences (at most 1e-4).

    On a card other algorithms take other sums, so that it has 100 times the rounding.
    """
    looser = 1 if device == "cpu" else 100
    net, expected = run(METHODS[name], False)
    other, found = run(METHODS[name], True, device)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=looser * 1e-7, atol=looser * 1e-11)
    for a, b in zip(other.cpu().parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=looser * 1e-9, atol=looser * 1e-12)


def test_weights_gradients_and_batches_lie_channels_last() -> None:
    net, _ = run(Reweighting(), True)
    for p in net.parameters():
        if p.ndim == 4:
            assert p.is_contiguous(memory_format=CHANNELS_LAST)
            assert p.grad is None or p.grad.is_contiguous(memory_format=CHANNELS_LAST)
    assert all(x.is_contiguous(memory_format=CHANNELS_LAST) for x in net.seen)
    plain, _ = run(Reweighting(), False)
    assert all(x.is_contiguous() for x in plain.seen)


def test_parameters_stay_the_same_objects() -> None:
    net = Convolutional()
    before = list(net.parameters())
    problem = Declared(
        "classifier",
        None,
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=images(1, 0),
    )
    Engine(
        [problem],
        EngineConfig(strategy="cpu", channels_last=True),
        {"u2l": {}, "l2u": {}},
    )
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    problem.set_module(Convolutional())
    weight = problem.module.layers[0].weight
    assert weight.is_contiguous(memory_format=CHANNELS_LAST)


def test_only_images_in_a_batch_are_laid_out() -> None:
    image, vector, clip = torch.ones(2, 3, 4, 4), torch.ones(2, 3), torch.ones(2, 3, 2, 4, 4)
    batch = {"x": (image, vector), "y": [clip, "name"]}
    moved = move_batch(batch, torch.device("cpu"), channels_last=True)
    assert moved["x"][0].is_contiguous(memory_format=CHANNELS_LAST)
    assert moved["x"][1] is vector
    assert moved["y"] == [clip, "name"]
    assert image.is_contiguous()
