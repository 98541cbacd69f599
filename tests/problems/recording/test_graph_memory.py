"""The memory of a graph, counted another way."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.recording.graph_memory import Retained
from support.devices import DEVICES
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

X = torch.linspace(-1, 1, 40 * 5).reshape(40, 5).sin()


def test_what_is_made_and_held_counts_once() -> None:
    given = torch.ones(1000)
    with Retained() as retained:
        held = given[:500] + 1
        view = held[10:20].unsqueeze(0)
        given.add_(1)
        given.mul(2)
    # Neither the view, what was written to, nor what is gone.
    assert retained.bytes() == 500 * 4
    del held
    assert retained.bytes() == 500 * 4
    del view
    assert retained.bytes() == 0


def test_a_graph_takes_what_it_saves() -> None:
    """Three layers, whose graph of the gradient torch itself tells of."""
    net = nn.Sequential(nn.Linear(5, 30), nn.Tanh(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1))
    parameters = list(net.parameters())
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda t: t), Retained() as retained:
        loss = net(X).square().mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    for there in (*parameters, X):
        saved.pop(there.untyped_storage().data_ptr(), None)
    for found in gradients:
        storage = found.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
    saved[loss.untyped_storage().data_ptr()] = loss.untyped_storage().nbytes()
    least = sum(saved.values())
    assert least > 20_000
    # Beside it torch holds a few numbers.
    assert least <= retained.bytes() <= least + 200
    values = sum(p.untyped_storage().nbytes() for p in parameters)
    assert retained.bytes(beside=gradients) == retained.bytes() - values


def test_derivatives_inside_a_loss_are_counted_too() -> None:
    """``torch.func`` lets no hooks see what is saved."""
    w = torch.ones(5, requires_grad=True)
    with Retained() as retained:
        slopes = torch.func.vmap(torch.func.grad(lambda x: (x * w).sin().sum()))(X)
        loss = slopes.square().sum()
    assert retained.bytes() >= X.numel() * 4
    assert loss.requires_grad


@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_card_holds_as_much(device: str) -> None:
    """But for the rounding of sizes, to 512 bytes."""
    net = nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh()).to(device)
    x = X.to(device)
    held: list[Tensor] = []
    # What libraries set aside at their first call is no part of a graph.
    for _ in range(2):
        held.clear()
        before = torch.cuda.memory_allocated(device)
        with Retained() as retained:
            loss = net(x).square().mean()
            held += torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    grown = torch.cuda.memory_allocated(device) - before
    assert retained.bytes() <= grown <= retained.bytes() + 512 * 60
