"""Differences of gradients on networks of rectifiers, whose steps cross kinks.

The reference is the exact unroll of the same program. In float64 rounding is out of the way, so
that what is left of the error is that of the difference: first order in the step for one side,
second order for the central one, however many kinks a step crosses.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaweight import Config, Unroll

STEPS = 3


class Kinked(nn.Module):
    """Rectifiers and a max pooling over a hidden layer of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64))
        self.second = nn.Linear(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool1d(self.first(x).unsqueeze(1), 2).squeeze(1)
        hidden: Tensor = F.leaky_relu(self.second(F.relu(pooled)), 0.1)
        found: Tensor = self.last(hidden)
        return found


class Counting(nn.Module):
    """Counts the passes through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        found: Tensor = self.network(x)
        return found


class Checkpointed(nn.Module):
    """A convolutional network that computes its hidden layers again in the backward pass."""

    def __init__(self, *, active: bool) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3), nn.Softplus()
        )
        self.last = nn.Linear(8, 4)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        x = checkpoint(self.hidden, x, use_reentrant=False) if self.active else self.hidden(x)
        found: Tensor = self.last(x.flatten(1))
        return found


def gradient(kind: Unroll, net: nn.Module, problem: Any = Declared, **more: Any) -> list[Tensor]:
    config = Config(type=kind, unroll_steps=STEPS)
    engine = program(problem, config=config, net=net, **more)
    seen: list[Tensor] = []
    judge = engine.judge
    judge.grad_callback = lambda: seen.extend(p.grad.clone() for p in judge.module.parameters())
    for _ in range(STEPS):
        engine.train_step()
    return seen


def kinked() -> nn.Module:
    torch.default_generator.manual_seed(3)
    return Kinked()


@pytest.mark.parametrize("case", ["declared", "attached"])
@pytest.mark.parametrize(("product", "order"), [("one_sided", 1), ("finite_difference", 2)])
def test_the_error_falls_with_its_order(product: str, order: int, case: str) -> None:
    """Over a hundredfold of steps, the longest of which turns a tenth of the units."""
    more: dict[str, Any] = {} if case == "declared" else {"problem": Plain, "extra": "attached"}
    exact = gradient(Unroll(), kinked(), **more)
    errors = [
        relative_error(gradient(Unroll(product=product, alpha=alpha), kinked(), **more), exact)
        for alpha in (3e-1, 3e-2, 3e-3)
    ]
    assert errors[2] < 20 * 3e-3**order
    for longer, shorter in itertools.pairwise(errors):
        assert shorter == pytest.approx(longer / 10**order, rel=1.0)


def passes(net: nn.Module, product: str) -> float:
    counting = Counting(net)
    gradient(Unroll(product=product), counting)
    return counting.passes


@pytest.mark.parametrize(("product", "displaced"), [("one_sided", 1), ("finite_difference", 2)])
def test_networks_without_kinks_pay_for_one_pass_to_know(product: str, displaced: int) -> None:
    """Training and the upper loss apart, a step takes its displaced passes and one at home."""
    smooth = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    training = STEPS + 1
    assert passes(kinked(), product) == training + STEPS * (displaced + 1)
    assert passes(smooth, product) == training + STEPS * displaced + 1


@pytest.mark.parametrize("product", ["exact", "finite_difference", "one_sided"])
def test_checkpointed_networks_have_the_same_hypergradient(product: str) -> None:
    """In the exact case to rounding. Differences cross the kinks of checkpointed segments."""
    found = []
    for active in (True, False):
        torch.default_generator.manual_seed(0)
        alpha = None if product == "exact" else 1e-6
        kind = Unroll(product=product, alpha=alpha)
        found.append(gradient(kind, Checkpointed(active=active)))
    assert relative_error(found[0], found[1]) < (1e-9 if product == "exact" else 1e-4)
