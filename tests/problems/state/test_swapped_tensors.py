"""Tensors that stand in for others stand where these are held, wherever that is."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.state.swapped_tensors import swapped
from torch import Tensor, nn

from metaweight import ConfigurationError


def stand_ins(network: nn.Module) -> dict[Tensor, Tensor]:
    return {p: torch.full_like(p, 7.0) for p in network.parameters()}


def test_every_place_holds_the_stand_in_and_then_the_tensor_again() -> None:
    tied = nn.Linear(2, 2)
    network = nn.Sequential(tied, nn.Linear(2, 2), tied)
    network.register_parameter("again", tied.weight)
    instead = stand_ins(network)
    before = dict(network.named_parameters(remove_duplicate=False))
    with pytest.raises(KeyError, match="inside"), swapped(network, instead):
        inside = dict(network.named_parameters(remove_duplicate=False))
        assert all(inside[name] is instead[p] for name, p in before.items())
        raise KeyError("inside")
    after = dict(network.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())


def test_a_place_that_torch_tells_nobody_of_is_found() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    tied = nn.Linear(2, 2, bias=False)
    tied.weight = network[0].weight
    network.insert(1, tied)
    with swapped(network, stand_ins(network)):
        assert network[0].weight is network[1].weight
        assert float(network[1].weight[0, 0]) == 7.0


class Refusing(dict):  # type: ignore[type-arg]
    def __setitem__(self, name: str, value: object) -> None:
        raise RuntimeError("refused")


def test_nothing_stays_swapped_where_a_place_refuses() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[1]._parameters = Refusing(network[1]._parameters)
    before = list(network.parameters())
    with pytest.raises(RuntimeError, match="refused"), swapped(network, stand_ins(network)):
        pass
    assert all(p is q for p, q in zip(network.parameters(), before, strict=True))


def test_a_tensor_that_is_held_nowhere_is_refused_before_anything_is_swapped() -> None:
    network = nn.Linear(2, 2)
    weight = network.weight
    instead = {**stand_ins(network), torch.zeros(5): torch.ones(5)}
    with pytest.raises(ConfigurationError, match=r"shape \(5,\).*register them"):
        swapped(network, instead)
    assert network.weight is weight
