"""Gradients lie in memory of their own, in the order of their parameters.

Clipping scales them in place, and torch's fused optimizers read them in the order they lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from metaweight.problems import Hypergradient, Product, Status
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Problem

Make = Callable[[Any], torch.optim.Optimizer]
SLOPES = torch.arange(12.0).reshape(3, 4)


class Upper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.level = nn.Parameter(torch.zeros(5))
        self.shift = nn.Parameter(torch.zeros(5))
        self.rest = nn.Parameter(torch.zeros(6))


class Views(Hypergradient):
    """Gives what ``autograd.grad`` may: transposed, the same tensor twice, one number expanded."""

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        transposed, same = SLOPES.t().contiguous().t(), torch.arange(1.0, 6.0)
        values = [transposed, same, same, torch.tensor(2.0).expand(6)]
        return Product(values, Status("Views"))


class Apart(Hypergradient):
    """The same numbers, each in memory of its own."""

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        same = torch.arange(1.0, 6.0)
        values = [SLOPES.clone(), same, same.clone(), torch.full((6,), 2.0)]
        return Product(values, Status("Apart"))


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.module(batch).sum()
        return loss + sum(p.sum() for p in self.upper.parameters())


class Judge(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.lower(batch).sum()
        return loss


def parameters(method: Hypergradient, make: Make, **settings: Any) -> list[Tensor]:
    """Return the upper parameters after three steps with an optimizer that ``make`` makes."""
    network, upper_module, data = nn.Linear(2, 1), Upper(), [torch.ones(1, 2)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    lower = Lower("lower", Config(type=method), network, optimizer, None, data)
    optimizers = make(upper_module.parameters())
    upper = Judge("upper", Config(**settings), upper_module, optimizers, None, data)
    graph = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    Engine([lower, upper], EngineConfig(train_iters=3, strategy="cpu"), graph).run()
    return [p.detach() for p in upper_module.parameters()]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_it_does_not_matter_how_hypergradients_lie_in_memory(
    optimizer: Any, settings: dict[str, Any], fused: bool, accumulation: int
) -> None:
    def make(parameters: Any) -> Any:
        return optimizer(parameters, lr=0.1, fused=fused, **settings)

    lengths = {"gradient_clipping": 1.0, "gradient_accumulation": accumulation}
    found, expected = (parameters(method, make, **lengths) for method in (Views(), Apart()))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad]
)
def test_fused_optimizers_compute_what_others_do(optimizer: Any) -> None:
    def plain(parameters: Any) -> Any:
        return optimizer(parameters, lr=0.1)

    def fused(parameters: Any) -> Any:
        return optimizer(parameters, lr=0.1, fused=True)

    found, expected = (parameters(Views(), make) for make in (fused, plain))
    for one, other in zip(found, expected, strict=True):
        # Sums in another order.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
