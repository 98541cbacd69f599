"""Passes through layers that are not asked for all gradients, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from metaweight.problems.kernels import torch_internals
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from support.bilinear_layers import assert_equal, conv, dense, two_layers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("small_layers_too")


class Passes(TorchDispatchMode):
    """Counts the passes of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "convolution_backward":
            self.number += sum(args[-1][:2])
        else:
            self.number += name in ("mm", "addmm", "convolution")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", [conv, dense])
def test_a_value_that_is_not_read_takes_no_pass(layer: Callable[[], Any]) -> None:
    net, weights, x = two_layers(layer)
    with Passes() as passes, differentiable_twice() as kernels, kernels.values_unread(weights):
        gradient = torch.autograd.grad(net(x).sin().sum(), weights, create_graph=True)
    # Forward through both layers, and back through the second.
    assert passes.number == 2 + 1
    with Passes() as passes:
        torch.autograd.grad(gradient, weights, [torch.ones_like(w) for w in weights])
    # Along both weights, and on through the second; what these do to the second's two gradients;
    # then back, as a training step goes.
    assert passes.number == 3 + 2 + 3


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("layer", [conv, dense])
def test_a_gradient_that_is_not_asked_for_takes_no_pass(
    layer: Callable[[], Any], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch tells what a pass is asked for; otherwise it takes longer, with equal results."""
    monkeypatch.setattr(torch_internals, "_tells_reach", told and torch_internals._tells_reach)
    net, weights, x = two_layers(layer)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        total: Tensor = (net(scale.exp() * x) * scale).sin().sum()
        return total

    def mixed(kernels: Any) -> list[Tensor]:
        with kernels.values_unread(weights) if kernels else nullcontext():
            gradient = torch.autograd.grad(loss(), weights, create_graph=True)
        along = [torch.ones_like(w) for w in weights]
        return list(torch.autograd.grad(gradient, [scale], along))

    with differentiable_twice() as kernels:
        with Passes() as passes:
            (found,) = torch.autograd.grad(loss(), [scale])
        # Forward and back through both layers, to the input alone.
        assert passes.number == (2 + 2 if told else 2 + 4)
        assert_equal([found], list(torch.autograd.grad(loss(), [scale])))
        ours = mixed(kernels)
    assert_equal(ours, mixed(None))


@pytest.mark.parametrize("layer", [conv, dense])
def test_a_pass_that_is_asked_for_all_fills_in_all(layer: Callable[[], Any]) -> None:
    net, _, x = two_layers(layer)
    with differentiable_twice():
        net(x).sin().sum().backward()
    every = list(net.parameters())
    ours = [p.grad for p in every if p.grad is not None]
    assert_equal(ours, list(torch.autograd.grad(net(x).sin().sum(), every)))
