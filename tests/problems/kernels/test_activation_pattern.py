"""Passes held to the activation pattern of another one, against the linear pieces written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.kernels import activation_pattern
from metaweight.problems.kernels.activation_pattern import ActivationPattern, passed_where
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

FIRST_USE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
RECTIFIERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "F.relu": (F.relu, 0.0),
    "torch.relu": (torch.relu, 0.0),
    "Tensor.relu": (Tensor.relu, 0.0),
    "nn.ReLU": (nn.ReLU(), 0.0),
    "nn.ReLU, in place": (lambda x: nn.ReLU(inplace=True)(x.clone()), 0.0),
    "torch.relu_": (lambda x: torch.relu_(x.clone()), 0.0),
    "Tensor.relu_": (lambda x: x.clone().relu_(), 0.0),
    "F.leaky_relu": (F.leaky_relu, 0.01),
    "nn.LeakyReLU": (nn.LeakyReLU(0.1), 0.1),
    "nn.LeakyReLU, in place": (lambda x: nn.LeakyReLU(0.1, inplace=True)(x.clone()), 0.1),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x.clone(), 0.2), 0.2),
}
POOLINGS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "F.max_pool1d": (lambda x: F.max_pool1d(x, 2), (2, 3, 8)),
    "nn.MaxPool2d": (nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 8, 8)),
    "F.max_pool2d, no batch": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), (3, 7, 7)),
    "nn.MaxPool3d": (nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_keep_the_units_that_were_on(name: str) -> None:
    rectifier, slope = RECTIFIERS[name]
    before, after = drawn(50), drawn(50, seed=1).requires_grad_()
    pattern = ActivationPattern()
    with pattern.noted():
        first = rectifier(before)
    torch.testing.assert_close(first, F.leaky_relu(before, slope))
    assert len(pattern) == 1
    with pattern.held():
        output = rectifier(after)
    factor = torch.where(before > 0, 1.0, slope)
    torch.testing.assert_close(output, factor * after)
    (gradient,) = torch.autograd.grad(output, after, after.detach(), create_graph=True)
    torch.testing.assert_close(gradient, factor * after)


@pytest.mark.parametrize("name", ["F.relu", "nn.LeakyReLU"])
def test_a_penalty_of_a_jacobian_keeps_its_graph(name: str) -> None:
    """A pass for several vectors at once drops the graph of a function within."""
    rectifier, slope = RECTIFIERS[name]
    before, after = drawn(3), drawn(3, seed=1).requires_grad_()
    weight = drawn(3, seed=2).requires_grad_()
    pattern = ActivationPattern()
    with pattern.noted():
        rectifier(before)
    with pattern.held():
        output = rectifier(after) * weight
    along = torch.eye(3, dtype=torch.float64)
    settings = {"create_graph": True, "is_grads_batched": True}
    (rows,) = torch.autograd.grad(output, after, along, **settings)
    (found,) = torch.autograd.grad(rows.square().sum(), weight)
    factor = torch.where(before > 0, 1.0, slope)
    torch.testing.assert_close(found, 2 * factor.square() * weight.detach())


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_keeps_the_entries_that_were_largest(name: str) -> None:
    """With no overlap in the way a one marks the entry chosen; the sum of them is the output."""
    pooling, shape = POOLINGS[name]
    before, after = drawn(*shape).requires_grad_(), drawn(*shape, seed=1).requires_grad_()
    pattern = ActivationPattern()
    with pattern.noted():
        first = pooling(before)
    with pattern.held():
        second = pooling(after)
        again = pooling(after)
    (chosen,) = torch.autograd.grad(first.sum(), before)
    (held,) = torch.autograd.grad(second.sum(), after)
    assert torch.equal(chosen, held)
    torch.testing.assert_close(second.sum(), (chosen * after).sum())
    assert torch.equal(again, pooling(after)), "past the pattern's end it pools by itself"


def network() -> nn.Module:
    torch.default_generator.manual_seed(0)
    layers = [nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 2)]
    return nn.Sequential(*layers).double()


@FIRST_USE
def test_a_network_is_linear_in_its_last_pattern() -> None:
    """``f`` held at ``x`` is affine, so that it equals its own tangent plane everywhere."""
    net, x, far = network(), drawn(5, 3), drawn(5, 3, seed=1)
    pattern = ActivationPattern()
    with pattern.noted():
        base = net(x)
    with pattern.held():
        moved = net(x + 10 * far)
    tangent = torch.func.jvp(net, (x,), (far,))[1]
    torch.testing.assert_close(moved, base + 10 * tangent)


def test_noting_again_replaces_the_pattern() -> None:
    pattern = ActivationPattern()
    for x in (drawn(4), -drawn(4)):
        with pattern.noted():
            F.relu(x)
    with pattern.held():
        output = F.relu(torch.ones(4, dtype=torch.float64))
    assert torch.equal(output, (drawn(4) < 0).double())


def test_other_shapes_and_operations_keep_to_themselves() -> None:
    pattern = ActivationPattern()
    with pattern.noted():
        F.relu(drawn(4))
        F.relu(drawn(4))
    x = drawn(5, seed=1)
    y = drawn(4, seed=1)
    with pattern.held():
        assert torch.equal(F.relu(x), x.relu())
        output = F.leaky_relu(y)
    assert torch.equal(output, F.leaky_relu(y))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments_hold_the_pattern(reentrant: bool) -> None:
    net, x = network(), drawn(5, 3).requires_grad_()
    pattern = ActivationPattern()
    with torch.no_grad(), pattern.noted():
        net(-x)
    with pattern.held():
        expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    with pattern.held():
        checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


@FIRST_USE
def test_compiled_modules_compute_as_ever() -> None:
    net, x = network(), drawn(5, 3)
    compiled = torch.compile(net, backend="aot_eager")
    pattern = ActivationPattern()
    with pattern.noted():
        first = compiled(x)
    with pattern.held():
        second = compiled(-x)
    torch.testing.assert_close((first, second), (net(x), net(-x)))


def test_transforms_compute_as_ever() -> None:
    x = drawn(4, 3)
    pattern = ActivationPattern()
    with pattern.noted():
        F.relu(-x)
    with pattern.held():
        output = torch.vmap(F.relu)(x)
    assert torch.equal(output, x.relu())


def test_a_torch_without_the_fused_operation_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = drawn(4, 5)
    on = drawn(4, 5, seed=1) > 0
    fused = passed_where(on, x)
    monkeypatch.setattr(activation_pattern, "has_operations", lambda *names: False)
    torch.testing.assert_close(passed_where(on, x), fused, rtol=0, atol=0)
    torch.testing.assert_close(fused, torch.where(on, x, 0.0), rtol=0, atol=0)
