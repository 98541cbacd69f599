"""Tensors that some methods took and others did not: batches of 16 bits, sparse gradients and
parameters without entries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.quadratic import gradients
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    SOBA,
    Config,
    ConjugateGradient,
    Engine,
    ImplicitProblem,
    Neumann,
    ReweightedProblem,
    Unroll,
    ZeroOrder,
)


class Fit(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return (self.module(batch["x"]).float() - self.upper.module.weight).square().mean()


class WeighedFit(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        return self.module(batch["x"]).float().square().squeeze(1)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.sigmoid(self.upper.module(batch["x"][:, :1])).squeeze(1)


class Judge(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return (self.lower.module.weight - 1).square().sum()


def linear(inputs: int, dtype: torch.dtype) -> nn.Module:
    net = nn.Linear(inputs, 1, bias=False).to(dtype)
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-1.0, 1.0, inputs + 1)[1:])
    return net


def of_16_bits(
    method: Any, lower: type, parameters: torch.dtype, batches: torch.dtype, precision: str
) -> Engine:
    net, above = linear(3, parameters), linear(1, parameters)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16().to(batches)
    fit = lower(
        "lower",
        Config(type=method, precision=precision),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[{"x": x, "labels": torch.arange(4)}],
    )
    optimizer = torch.optim.SGD(above.parameters(), lr=0.0)
    return over(Judge("upper", None, above, optimizer, train_data_loader=[0]), fit, train_iters=1)


METHODS = {
    "unroll": ("unroll", Fit),
    "darts": ("darts", Fit),
    "one-sided": (Unroll(product="one_sided"), Fit),
    "cg": (ConjugateGradient(iterations=1), Fit),
    "zero order": (ZeroOrder(samples=1), Fit),
    "reweighting": ("reweighting", WeighedFit),
    "unrolled reweighting": ("unroll", WeighedFit),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_16_bits_is_one_of_the_same_numbers(name: str) -> None:
    """To the bit: autocast rounds what it is given to 16 bits, and here that is no rounding."""
    method, lower = METHODS[name]
    found, expected = (
        gradients(of_16_bits(method, lower, torch.float32, kind, "bf16"), "upper")
        for kind in (torch.bfloat16, torch.float32)
    )
    assert float(expected.abs().sum()) > 1e-6
    assert torch.equal(found, expected)


def test_parameters_of_16_bits_take_such_a_batch_as_it_is() -> None:
    two = (torch.bfloat16, torch.bfloat16)
    found = gradients(of_16_bits("unroll", Fit, *two, "bf16"), "upper")
    assert torch.equal(found, gradients(of_16_bits("unroll", Fit, *two, "fp32"), "upper"))


class Drawn(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * ((self.module.weight - self.upper.module(batch).sum()) ** 2).sum()


class Table(ImplicitProblem):
    """``cfg``: whether its loss depends on its rows directly, too."""

    def training_step(self, batch: Any) -> Tensor:
        loss = ((self.lower.module.weight - 3) ** 2).sum()
        return loss + self.module(batch).square().sum() if self.cfg else loss


def test_sparse_rows_in_both_losses() -> None:
    """One step of ``w - 0.1 (w - Σ rows)`` by hand, in double precision to rounding."""
    net, table = linear(1, torch.float64), nn.Embedding(4, 1, sparse=True).double()
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.5], [-1.0], [2.0], [0.0]]))
    rows = torch.tensor([0, 2])
    lower = Drawn(
        "lower",
        Config(type="unroll"),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[rows],
    )
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    upper = Table("upper", None, table, optimizer, train_data_loader=[rows], extra_config=True)
    over(upper, lower, train_iters=1).run()
    through = 0.1 * 2 * (1.0 - 0.1 * (1.0 - 2.5) - 3)
    expected = [0.5 - (2 * 0.5 + through), -1.0, 2.0 - (2 * 2.0 + through), 0.0]
    assert table.weight.flatten().tolist() == pytest.approx(expected, rel=1e-12)


class WithNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.nothing = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))


class Draw(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        own = 0.5 * ((self.module.weight - self.upper.module.weight) ** 2).sum()
        return own + F.relu(self.module.nothing).sum()


@pytest.mark.parametrize(
    "method", [SOBA(lr=1.0), Neumann(warm=True), ConjugateGradient(warm=True), "cg", "darts"]
)
def test_a_parameter_without_entries_changes_nothing(method: Any) -> None:
    """The Hessian is 1, so that each method solves the system: the result is ``v``, to the
    rounding of a difference."""
    net, above = WithNothing(), linear(1, torch.float64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (net, above)]
    lower = Draw("lower", Config(type=method), net, optimizers[0], train_data_loader=[0])
    upper = Judge("upper", None, above, optimizers[1], train_data_loader=[0])
    found = gradients(over(upper, lower, train_iters=2), "upper")
    assert found.tolist() == pytest.approx([2.0], rel=1e-9)
