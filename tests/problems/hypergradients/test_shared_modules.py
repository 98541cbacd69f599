"""Modules and weights in several places of a network: hypergradients, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metaweight.problems import lower_view
from metaweight.problems.state.swapped_tensors import swapped
from support.covering import covering
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from torch import Tensor, nn

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    Engine,
    FiniteDifference,
    Neumann,
    Reweighting,
    Unroll,
)


class Shared(nn.Module):
    """A module under two names, with batch norm in it."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())
        self.dec = self.enc
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dec(self.enc(x)))
        return out


class Tied(nn.Module):
    """A weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x).tanh()).tanh())
        return out


class Listed(nn.Module):
    """A module twice in a list, which calls it twice, and once more beside it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(6, 6)
        self.layers = nn.ModuleList([layer, nn.Tanh(), layer, nn.Tanh()])
        self.last = layer
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.last(x))
        return out


class Transposed(nn.Module):
    """A weight used as it is and transposed, its module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(6, 5, bias=False)
        self.same = self.enc
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.linear(self.enc(x).tanh(), self.same.weight.T).tanh())
        return out


NETWORKS: list[Callable[[], nn.Module]] = [Shared, Tied, Listed, Transposed]
METHODS = {
    "unroll": (Plain, Unroll()),
    "unroll, kept graphs": (Plain, Unroll(memory="full")),
    "unroll, forward over reverse": (Plain, Unroll(product="forward_over_reverse")),
    "unroll, declared": (Declared, Unroll()),
    "unroll, declared, kept graphs": (Declared, Unroll(memory="full")),
    "unroll, declared, forward over reverse": (Declared, Unroll(product="forward_over_reverse")),
    "unroll, declared, one-sided": (Declared, Unroll(product="one_sided", alpha=1e-7)),
    "reweighting, forward": (Declared, Reweighting(derivative="forward_mode")),
    "reweighting, central": (Declared, Reweighting()),
    "darts": (Declared, FiniteDifference()),
    "cg": (Declared, ConjugateGradient(iterations=2, damping=1.0)),
    "neumann": (Declared, Neumann(iterations=2, alpha=0.1)),
}


def trained(network: Callable[[], nn.Module], name: str) -> Engine:
    kind, method = METHODS[name]
    torch.default_generator.manual_seed(0)
    return program(kind, config=Config(type=method), net=network())


def slots(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


@pytest.mark.parametrize(
    ("name", "network"), covering(dict.fromkeys(METHODS, NETWORKS), whole=["unroll"])
)
def test_the_network_keeps_its_tensors_and_goes_on_training(name: str, network: Any) -> None:
    engine = trained(network, name)
    net = engine.classifier.module
    before = {where: id(tensor) for where, tensor in slots(net)}
    engine.train_step()
    engine.check_hypergradient()
    values = [p.detach().clone() for p in net.parameters()]
    engine.train_step()
    assert {where: id(tensor) for where, tensor in slots(net)} == before
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
    for value, parameter in zip(values, net.parameters(), strict=True):
        assert not torch.equal(value, parameter)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("unroll")])
def test_unrolled_products_are_those_of_a_naive_program(name: str, network: Any) -> None:
    """One step by hand, at tensors of its own that are put everywhere by hand."""
    engine = trained(network, name)
    net, judge = engine.classifier.module, engine.judge.module
    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    engine.train_step()
    theta = list(judge.parameters())
    places = list(net.parameters())

    def losses(at: list[Tensor], batch: Any) -> Tensor:
        with swapped(net, dict(zip(places, at, strict=True))):
            return F.cross_entropy(net(batch[0]), batch[1], reduction="none")

    sample = losses(start, engine.classifier.cur_batch)
    weights = judge(sample.detach())
    loss = (weights.reshape(sample.shape) * sample).mean()
    gradient = torch.autograd.grad(loss, start, create_graph=True)
    end = [w - 0.1 * g for w, g in zip(start, gradient, strict=True)]
    vector = [torch.linspace(-1, 1, p.numel()).double().reshape(p.shape) for p in places]
    along = sum((v * w).sum() for v, w in zip(vector, end, strict=True))
    expected = torch.autograd.grad(along, theta, retain_graph=True)
    method = METHODS[name][1]
    if method.memory == "full":
        engine = trained(network, name)
        engine.train_step()
        theta = list(engine.judge.module.parameters())
    found = method.vjp(lower_view(engine.classifier), vector, theta).values
    assert relative_error(found, expected) < (1e-5 if "one-sided" in name else 1e-10)


def test_every_slot_is_swapped_once_and_put_back_after_an_error() -> None:
    net = Shared()
    weight = net.enc[0].weight
    other = torch.zeros_like(weight)
    with pytest.raises(RuntimeError, match="inside"), swapped(net, {weight: other}):
        assert net.enc[0].weight is net.dec[0].weight is other
        raise RuntimeError("inside")
    assert net.enc[0].weight is net.dec[0].weight is weight


def test_a_tensor_of_no_slot_is_refused() -> None:
    message = r"Tensors of shape \(2,\) .* no parameters or buffers of Shared; register them"
    with pytest.raises(ConfigurationError, match=message), swapped(Shared(), {torch.ones(2): 0}):
        pass  # Not reached.
