"""What ``engine.describe()`` says of a step is what the step does."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.methods import GRADIENT_METHODS
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    Config,
    ConjugateGradient,
    Engine,
    ImplicitProblem,
    Penalty,
    ReweightedProblem,
    Reweighting,
    Unroll,
    ZeroOrder,
)

METHODS = {**GRADIENT_METHODS, "zero order": ZeroOrder(samples=2)}


class Lower(ImplicitProblem):
    passes = 0

    def training_step(self, batch: Any) -> Tensor:
        type(self).passes += 1
        losses = (self.module(batch).square() - 1).square().mean(1)
        return (torch.sigmoid(self.upper(batch)).squeeze(1) * losses).mean()


class Weighed(ReweightedProblem):
    passes = 0

    def sample_losses(self, batch: Any) -> Tensor:
        type(self).passes += 1
        return (self.module(batch).square() - 1).square().mean(1)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        del losses
        return torch.sigmoid(self.upper(batch)).squeeze(1)


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return self.lower(batch).square().mean()


def program(kind: type[ImplicitProblem], below: Config, above: Config | None = None) -> Engine:
    torch.default_generator.manual_seed(0)
    low, up = nn.Linear(2, 3), nn.Linear(2, 1)
    batches = list(torch.randn(6, 4, 2))
    lower = kind("lower", below, low, torch.optim.SGD(low.parameters(), 0.1))
    upper = Upper("upper", above, up, torch.optim.SGD(up.parameters(), 0.1))
    lower.train_data_loader = upper.train_data_loader = batches
    engine: Engine = over(upper, lower, train_iters=6)
    return engine


@pytest.mark.parametrize("name", METHODS)
def test_it_counts_the_forward_passes_of_a_hypergradient(name: str) -> None:
    kind = Weighed if "reweighting" in name else Lower
    steps, accumulation = 3, 2
    config = Config(type=METHODS[name], unroll_steps=steps, gradient_accumulation=accumulation)
    engine = program(kind, config)
    (said,) = re.findall(r" through lower, per micro-batch: (.*), in float32", engine.describe())
    found = re.match(r"(\d+) forward", said)
    expected = 0 if found is None else int(found[1])
    before = kind.passes
    engine.run()
    # "And one of each more" is for kinks, which the network lacks; one pass finds that out.
    finds_out = accumulation if name in ("unroll, difference", "unroll, one-sided") else 0
    passes = kind.passes - before - steps * accumulation - finds_out
    assert passes == expected * accumulation


def test_it_says_in_which_precision_a_step_computes() -> None:
    engine = program(Weighed, Config(type=Reweighting(), precision="bf16"))
    size = re.compile("  [0-9,]+ parameters|  memory: |  plan: |  Reweighting goes|run: ")
    assert [line for line in engine.describe().splitlines() if not size.match(line)] == [
        "upper: uppers [], lowers ['lower'], paths ['upper -> lower -> upper']",
        "  a step: a forward and a backward pass in float32",
        "  Reweighting through lower, per micro-batch: 2 forward passes without a graph, in "
        "float32",
        "  upper passes through lower without autocast, though that trains in bf16; "
        "Config(precision='bf16') speeds it up",
        "lower: uppers ['upper'], lowers [], paths []",
        "  a step: a forward and a backward pass in bf16 by autocast",
    ]
    own = Config(type=Reweighting(full_precision=False), precision="bf16", gradient_accumulation=2)
    text = program(Weighed, own, Config(precision="bf16")).describe()
    said = "1 forward pass with tangents, since passes compute in 16 bits, in bf16 by autocast"
    assert said in text
    assert "a micro-batch, of which a step has 2: a forward and a backward pass in bf16" in text
    assert "speeds it up" not in text


@pytest.mark.parametrize("full_precision", [True, False])
def test_it_says_why_a_one_sided_derivative_takes_two_passes(full_precision: bool) -> None:
    method = Reweighting(derivative="one_sided", full_precision=full_precision)
    engine = program(Weighed, Config(type=method, precision="bf16"))
    said = "2 forward passes without a graph, since the losses of the step are in 16 bits, in float"
    assert (said in engine.describe()) is full_precision
    before = Weighed.passes
    with nullcontext() if full_precision else pytest.warns(UserWarning, match="one-sided diff"):
        engine.run()
    assert Weighed.passes - before == 6 * (3 if full_precision else 2)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (ConjugateGradient(iterations=4), "1 forward and 1 backward pass with a graph, and 5"),
        (Penalty(steps=4), "10 forward and 10 backward passes"),
        (Unroll(memory="full"), "a backward pass of the kept graph of each of 3 steps"),
        (Unroll(steps=2), "2 forward and 2 backward passes with a graph, and 2 backward passes"),
    ],
)
def test_it_names_the_passes_of_solvers_and_unrolls(method: Any, said: str) -> None:
    engine = program(Lower, Config(type=method, unroll_steps=3))
    assert said in engine.describe()
