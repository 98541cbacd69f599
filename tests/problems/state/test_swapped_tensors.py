"""Tensors that stand in for others stand where these are held, wherever that is."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.state.swapped_tensors import swapped, tensor_slots
from torch import Tensor, nn

from metaweight import ConfigurationError


def stand_ins(network: nn.Module) -> dict[Tensor, Tensor]:
    return {p: torch.full_like(p, 7.0) for p in network.parameters()}


@pytest.mark.parametrize("known", [False, True])
def test_every_place_holds_the_stand_in_and_then_the_tensor_again(known: bool) -> None:
    tied = nn.Linear(2, 2)
    network = nn.Sequential(tied, nn.Linear(2, 2), tied)
    network.register_parameter("again", tied.weight)
    instead = stand_ins(network)
    before = dict(network.named_parameters(remove_duplicate=False))
    with (
        pytest.raises(KeyError, match="inside"),
        swapped(network, instead, tensor_slots(network) if known else None),
    ):
        inside = dict(network.named_parameters(remove_duplicate=False))
        assert all(inside[name] is instead[p] for name, p in before.items())
        raise KeyError("inside")
    after = dict(network.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())


def test_places_that_were_found_before_a_change_are_found_anew() -> None:
    """A place is gone, and a parameter has come to another one."""
    network = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    slots = tensor_slots(network)
    moved = network[0].weight
    del network[0].weight
    network.append(nn.Linear(2, 2, bias=False))
    network[1].weight = moved
    instead = {moved: torch.zeros(2, 2)}
    with swapped(network, instead, slots):
        assert network[1]._parameters["weight"] is instead[moved]
    assert network[1].weight is moved


def test_a_tensor_that_is_held_nowhere_is_refused_before_anything_is_swapped() -> None:
    network = nn.Linear(2, 2)
    weight = network.weight
    instead = {**stand_ins(network), torch.zeros(5): torch.ones(5)}
    for slots in (None, tensor_slots(network)):
        with pytest.raises(ConfigurationError, match=r"shape \(5,\).*register them"):
            swapped(network, instead, slots)
        assert network.weight is weight
