"""What happens on a torch that lacks a private name: the same numbers, by torch's own functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from metaweight.problems.kernels import substitution, torch_internals, twice_differentiable
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from torch import Tensor, nn
from torch.autograd import forward_ad

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def network() -> nn.Module:
    torch.default_generator.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 2)).double()


def product() -> list[Tensor]:
    """The Hessian of a small network's loss times a vector of ones."""
    net, inputs = network(), torch.linspace(-1, 1, 96, dtype=torch.float64).view(3, 2, 4, 4)
    weights = list(net.parameters())
    with differentiable_twice() as kernels:
        loss = net(inputs).square().mean()
        with kernels.values_unread(weights):
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
    return list(torch.autograd.grad(sum(g.sum() for g in gradient), weights))


class Frozen(nn.Module):
    """``w · sg(w)``, whose stop-gradient is ``torch.no_grad``."""

    def forward(self, w: Tensor) -> Tensor:
        with torch.no_grad():
            constant = w * 1.0
        return w * constant


def tangent() -> Tensor:
    with forward_ad.dual_level(), differentiable_twice():
        dual = forward_ad.make_dual(torch.tensor([2.0, 3.0]), torch.ones(2))
        return forward_ad.unpack_dual(Frozen()(dual)).tangent


@pytest.fixture(params=["_transforms_active", "_saved_tensor_hooks"])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch_internals, request.param, None)
    yield request.param


def test_torch_here_has_every_name() -> None:
    names = ("_transforms_active", "_saved_tensor_hooks", "_set_grad", "_forward_grad")
    assert all(getattr(torch_internals, name) is not None for name in names)
    assert torch_internals.FOLLOWS_NO_GRAD
    assert torch_internals.has_operations("native_batch_norm", "convolution_backward")


def test_where_torch_does_not_tell_all_is_left_to_torch(without: str) -> None:
    assert substitution.left_to_torch((torch.ones(2),))


def test_products_are_the_same_without_a_name(without: str) -> None:
    found = product()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_internals, without, lambda *_: None)
        torch.testing.assert_close(found, product(), rtol=1e-12, atol=1e-14)


def test_products_are_the_same_without_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = product()
    monkeypatch.setattr(twice_differentiable, "has_operations", lambda *names: False)
    torch.testing.assert_close(product(), whole, rtol=1e-12, atol=1e-14)


def test_constants_of_a_network_stay_constant_without_the_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # d/dw (w · sg(w)) = sg(w); differentiated through, it would be 2w.
    expected = torch.tensor([2.0, 3.0])
    assert torch.equal(tangent(), expected)
    monkeypatch.setattr(torch_internals, "FOLLOWS_NO_GRAD", False)
    monkeypatch.setattr(twice_differentiable, "FOLLOWS_NO_GRAD", False)
    monkeypatch.setattr(twice_differentiable, "GRAD_SWITCHES", frozenset())
    assert torch.equal(tangent(), expected)
