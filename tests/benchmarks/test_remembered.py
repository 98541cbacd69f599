"""Weights and losses that remember each sample against a plain program, in double precision."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Config, Engine, Reweighting
from metaweight.weighting import WeightLearner

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(6, 3, generator=DRAW, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
ORDER = [[0, 1, 2], [3, 4, 5], [2, 4, 0], [1, 2, 5]]
State = dict[int, Tensor]


class Averages:
    """The weight sees the average loss."""

    kind, module, memory = "averaged.AveragedClassifier", "averaged.WithAverages", "averages"
    sizes = (6,)

    @staticmethod
    def terms(rows: Sequence[int], logits: Tensor, before: State) -> tuple[Tensor, Tensor, State]:
        losses = F.cross_entropy(logits, LABELS[rows], reduction="none")
        now = dict(zip(rows, losses.detach(), strict=True))
        moved = {r: 0.7 * before[r] + 0.3 * one if r in before else one for r, one in now.items()}
        return losses, torch.stack([*moved.values()]), moved


class Targets:
    """The loss is regularised towards early predictions; the weight sees the cross-entropy."""

    kind, module, memory = "early.EarlyLearner", "early.WithTargets", "targets"
    sizes = (6, 2)

    @staticmethod
    def terms(rows: Sequence[int], logits: Tensor, before: State) -> tuple[Tensor, Tensor, State]:
        p = logits.softmax(1)
        given = torch.stack([before.get(row, torch.zeros(2).double()) for row in rows])
        losses = -p[torch.arange(len(rows)), LABELS[rows]].log()
        moved = 0.7 * given + 0.3 * p.detach()
        held = 3 * (1 - (p * given).sum(1)).log()
        return losses + held, losses.detach(), dict(zip(rows, moved, strict=True))


def weigh(scale: Tensor, seen: Tensor) -> Tensor:
    return torch.sigmoid(scale * seen)


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, seen: Tensor, labels: Tensor) -> Tensor:
        return weigh(self.scale, seen)


def weighted(
    memory: type, rows: list[int], parameters: Sequence[Tensor], before: State, scale: Tensor
) -> Tensor:
    losses, seen, _ = memory.terms(rows, F.linear(INPUTS[rows], *parameters), before)
    return (weigh(scale, seen) * losses).mean()


def plainly(memory: type, start: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], State]:
    """Four steps of SGD on a linear network, by autograd alone."""
    parameters = [p.clone().requires_grad_() for p in start]
    value, state = torch.tensor(0.5, dtype=torch.float64), State()
    for rows in ORDER:
        before = dict(state)
        slopes = torch.autograd.grad(weighted(memory, rows, parameters, before, value), parameters)
        state |= memory.terms(rows, F.linear(INPUTS[rows], *parameters), before)[2]
        parameters = [
            (w - 0.5 * s).detach().requires_grad_() for w, s in zip(parameters, slopes, strict=True)
        ]
        upper = F.cross_entropy(F.linear(INPUTS, *parameters), LABELS)
        v = torch.autograd.grad(upper, parameters)
        # At the parameters after the step, without the learning rate.
        scale = value.clone().requires_grad_()
        loss = weighted(memory, rows, parameters, before, scale)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        along = sum((s * one).sum() for s, one in zip(slopes, v, strict=True))
        value = value - 0.1 * torch.autograd.grad(-along, scale)[0]
    return value, parameters, state


@pytest.mark.parametrize("memory", [Averages, Targets])
def test_training_is_that_of_a_plain_program(benchmark_modules, memory):
    def part(path: str):
        file, name = path.split(".")
        return getattr(importlib.import_module(f"study.{file}"), name)

    network = torch.nn.Linear(3, 2).double()
    expected = plainly(memory, [p.detach().clone() for p in network.parameters()])
    module = part(memory.module)(network, *memory.sizes).double()
    weights = Scale()
    classifier = part(memory.kind)(
        "classifier",
        Config(type=Reweighting(derivative="forward_mode")),
        weights="reweight",
        module=module,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        train_data_loader=[(INPUTS[rows], LABELS[rows], torch.tensor(rows)) for rows in ORDER],
    )
    learner = WeightLearner(
        "reweight",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), lr=0.1),
        train_data_loader=[(INPUTS, LABELS)],
    )
    Engine.bilevel(learner, classifier, train_iters=4, device="cpu").run()
    value, parameters, state = expected
    found = (weights.scale, network.weight, network.bias, getattr(module, memory.memory))
    told = torch.stack([state[row] for row in range(6)])
    # Double precision and the same operations: rounding alone.
    for one, other in zip(found, (value, *parameters, told), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
