"""Unrolled steps that write: the optimizer to gradients, passes to parameters.

Tolerance: relative 1e-9 in float64, as for all that is exact.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from torch import Tensor, nn

from metaweight import Config, Engine, ImplicitProblem, IterativeProblem, Unroll


class Shifted(nn.Module):
    """``p + u v``: the derivative of the gradients by ``u`` and ``v`` reads that by ``p``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.p, self.u, self.v = map(nn.Parameter, draw.unbind())

    def forward(self):
        return self.p + self.u * self.v


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))


class Scaled(IterativeProblem):
    def training_step(self, batch):
        return ((self.module() - batch) ** 2 * self.scale.module.log.exp()).sum()


class Scaling(ImplicitProblem):
    def training_step(self, batch):
        return (self.scaled.module() - batch).square().sum()


def hypergradient_of_scale(kind, settings, method) -> torch.Tensor:
    net, scale, seen = Shifted(), Scale(), []
    lower = Scaled(
        "scaled",
        Config(type=method, unroll_steps=3),
        net,
        kind(net.parameters(), **settings),
        train_data_loader=[torch.arange(4, dtype=torch.float64)],
    )
    rate = torch.optim.SGD(scale.parameters(), lr=0.0)
    upper = Scaling("scale", None, scale, rate, train_data_loader=[1.0])
    upper.grad_callback = lambda: seen.append(scale.log.grad.clone())
    # The second loop begins with momentum.
    Engine.bilevel(upper, lower, train_iters=6, progress=False).run()
    return seen[-1]


STEPS_AT_ONCE = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.02}),
    "adamw, maximize": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
}


@pytest.mark.parametrize("way", ["foreach", "fused"])
@pytest.mark.parametrize("case", STEPS_AT_ONCE)
def test_steps_of_all_tensors_at_once_may_write_to_gradients(case: str, way: str) -> None:
    """They are the default on a GPU, and a kept graph may hold the gradients that they write to."""
    kind, settings = STEPS_AT_ONCE[case]
    if way == "fused" and kind is torch.optim.RMSprop:
        pytest.skip("torch has no fused RMSprop")
    expected = hypergradient_of_scale(kind, settings, Unroll())
    assert float(expected.norm()) > 1e-6
    for method in (Unroll(), Unroll(memory="full")):
        found = hypergradient_of_scale(kind, {**settings, way: True}, method)
        assert relative_error([found], [expected]) < 1e-9


WORDS, MOST, LR, DECAY = 6, 0.7, 0.1, 0.1
BATCHES = [torch.tensor(rows) for rows in ([0, 1, 2, 2], [2, 3, 4, 5], [5, 0, 1, 3])]
EVERY = torch.arange(WORDS)


class Words(nn.Module):
    """A linear map of embeddings, whose rows each pass cuts to a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.table = nn.Embedding(WORDS, 3, max_norm=MOST).double()
        self.line = nn.Linear(3, 1).double()

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.line(self.table(words).tanh()).squeeze(1)
        return found


class Fit(IterativeProblem):
    shrinks = False

    def training_step(self, batch: Tensor) -> Any:
        if self.shrinks:
            with torch.no_grad():
                self.module.line.weight.mul_(0.9)
        return (self.module(batch) - 1).square().mean() * self.scale.module.log.exp()[0]


class Judge(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Any:
        return (self.fit(batch) - 0.3).square().mean()


def hypergradients_of_fit(method: Unroll, decoupled: bool, shrinks: bool) -> list[Tensor]:
    net, scale, seen = Words(), Scale(), []
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    lower = Fit(
        "fit",
        Config(type=method, unroll_steps=3),
        net,
        kind(net.parameters(), lr=LR, weight_decay=DECAY),
        train_data_loader=BATCHES,
    )
    lower.shrinks = shrinks
    rate = torch.optim.SGD(scale.parameters(), lr=0.0)
    upper = Judge("scale", None, scale, rate, train_data_loader=[EVERY])
    upper.grad_callback = lambda: seen.append(scale.log.grad[0].clone())
    Engine.bilevel(upper, lower, train_iters=6, progress=False).run()
    return seen


def naive(decoupled: bool, shrinks: bool) -> list[Tensor]:
    """Two loops of three steps in one graph each; what is written to is a constant shift."""
    net, log = Words(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    w = [p.detach() for p in net.parameters()]
    m, v = ([torch.zeros_like(p) for p in w] for _ in range(2))
    found, t = [], 0
    for _ in range(2):
        w, m, v = ([s.detach().requires_grad_() for s in state] for state in (w, m, v))
        for batch in BATCHES:
            t += 1
            w = written(w, batch, shrinks)
            loss = (predicted(w, batch) - 1).square().mean() * log.exp()
            g = torch.autograd.grad(loss, w, create_graph=True)
            d = g if decoupled else [a + DECAY * b for a, b in zip(g, w, strict=True)]
            m = [0.9 * a + 0.1 * b for a, b in zip(m, d, strict=True)]
            v = [0.999 * a + 0.001 * b * b for a, b in zip(v, d, strict=True)]
            kept = 1 - LR * DECAY if decoupled else 1.0
            w = [
                kept * a - LR / (1 - 0.9**t) * b / ((c / (1 - 0.999**t)).sqrt() + 1e-8)
                for a, b, c in zip(w, m, v, strict=True)
            ]
        w = written(w, EVERY, False)
        upper = (predicted(w, EVERY) - 0.3).square().mean()
        found += torch.autograd.grad(upper, log)
    return found


def written(w: list[Tensor], batch: Tensor, shrinks: bool) -> list[Tensor]:
    table = w[0].detach().clone()
    for row in batch.unique():
        length = table[row].norm()
        if length > MOST:
            table[row] *= MOST / (length + 1e-7)  # as torch cuts them
    line = w[1] + ((0.9 if shrinks else 1.0) - 1) * w[1].detach()
    return [w[0] + (table - w[0]).detach(), line, w[2]]


def predicted(w: list[Tensor], batch: Tensor) -> Tensor:
    return F.linear(F.embedding(batch, w[0]).tanh(), w[1], w[2]).squeeze(1)


@pytest.mark.parametrize("shrinks", [False, True], ids=["rows are cut", "and a weight shrinks"])
@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
@pytest.mark.parametrize("memory", ["flat", "full"])
def test_the_optimizer_finds_what_a_pass_has_written(
    memory: str, decoupled: bool, shrinks: bool
) -> None:
    found = hypergradients_of_fit(Unroll(memory=memory), decoupled, shrinks)
    assert relative_error(found, naive(decoupled, shrinks)) < 1e-9
