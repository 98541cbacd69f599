"""Layers whose weight gradients need no values, against differences and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from metaweight.problems.kernels.twice_differentiable import (
    TwiceDifferentiable,
    differentiable_twice,
)
from support.bilinear_layers import (
    assert_equal,
    conv,
    dense,
    drawn,
    is_ours,
    two_layers,
)
from support.devices import DEVICES
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("small_layers_too")


FIRST_USE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
# A card may add in another order when it repeats a pass.
REPEATED = 1e-10
CASES = {
    "1d": (F.conv1d, (2, 4, 4), (2, 4, 3), {"padding": 1}),
    "2d": (F.conv2d, (2, 2, 3, 3), (3, 2, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "2d, groups": (F.conv2d, (2, 4, 3, 2), (6, 2, 2, 2), {"groups": 2, "dilation": [2, 1]}),
    "3d": (F.conv3d, (2, 2, 2, 3, 2), (2, 2, 2, 2, 2), {}),
    "linear": (F.linear, (3, 4), (2, 4), {}),
    "linear, sequences": (F.linear, (2, 3, 4), (2, 4), {}),
}


@FIRST_USE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_finite_differences(case: str, bias: bool, device: str) -> None:
    function, x, w, settings = CASES[case]
    given = drawn(x, w, *[w[:1]] * bias, device=device)
    with TwiceDifferentiable():
        assert is_ours(function(*given, **settings))  # type: ignore[operator]

    def apply(*arguments: Tensor) -> Tensor:
        with TwiceDifferentiable():
            output: Tensor = function(*arguments, **settings)  # type: ignore[operator]
        # Bent, since a convolution's own second derivatives by one argument are zero.
        return output.sin()

    assert torch.autograd.gradcheck(apply, tuple(given), check_forward_ad=True, nondet_tol=REPEATED)
    assert torch.autograd.gradgradcheck(
        apply, tuple(given), check_fwd_over_rev=True, nondet_tol=REPEATED
    )


def network() -> nn.Module:
    layers = [
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Conv2d(2, 3, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        nn.Linear(5, 2, bias=False),
    ]
    torch.default_generator.manual_seed(0)
    return nn.Sequential(*layers).double()


def hessian_products(
    net: nn.Module, x: Tensor, *, unread: bool, hooked: bool = False
) -> list[Tensor]:
    """Return ``∂<∇L, u>/∂w``; without values of the gradient, or by torch."""
    weights = list(net.parameters())
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    with differentiable_twice() as kernels:
        loss = net(x).square().sum() if unread else None
        if unread:
            with kernels.values_unread(weights):
                gradient = torch.autograd.grad(loss, weights, create_graph=True)
            zero = [not g.detach().any() for g in gradient if g.ndim > 1]
            assert all(zero) is not hooked
    if not unread:
        gradient = torch.autograd.grad(net(x).square().sum(), weights, create_graph=True)
    found = torch.autograd.grad(gradient, weights, along, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]


def test_products_need_no_values_of_the_gradient() -> None:
    net = network()
    x = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    assert_equal(hessian_products(net, x, unread=True), hessian_products(net, x, unread=False))


def test_a_hook_on_a_weight_reads_its_gradient() -> None:
    """A hook that is not linear: its derivative needs the value."""
    net = network()
    for p in net.parameters():
        p.register_hook(lambda g: g.pow(3))
    x = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    ours = hessian_products(net, x, unread=True, hooked=True)
    assert_equal(ours, hessian_products(net, x, unread=False))


class Standardised(nn.Module):
    """A weight computed from another."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.square().mean().sqrt()


def test_a_weight_that_is_computed_has_its_gradient_read() -> None:
    """The gradient of the weight goes on, through a function of others."""
    net = network()
    nn.utils.parametrize.register_parametrization(net[0], "weight", Standardised())
    for place in (3, 6, 8):
        nn.utils.parametrize.register_parametrization(net[place], "weight", Standardised())
    x = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    ours = hessian_products(net, x, unread=True, hooked=True)
    assert_equal(ours, hessian_products(net, x, unread=False))


@pytest.mark.parametrize("layer", [conv, dense])
def test_a_weight_used_twice_counts_twice(layer: Callable[[], Any]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor) -> Tensor:
            twice = self.layer(self.layer(x).tanh()).tanh()
            return twice + self.layer.weight.pow(3).sum()

    torch.default_generator.manual_seed(0)
    net, x = Tied(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    ours = hessian_products(net, x, unread=True, hooked=True)
    assert_equal(ours, hessian_products(net, x, unread=False))


@pytest.mark.parametrize("layer", [conv, dense])
def test_third_derivatives(layer: Callable[[], nn.Module]) -> None:
    """A gradient penalty: what it reads of the inner gradient has its values."""
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(layer(), nn.Tanh())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = list(net.parameters())
    along = [torch.randn_like(p) for p in weights]

    def products(unread: bool) -> tuple[Tensor, ...]:
        with differentiable_twice() as kernels:
            inner = torch.autograd.grad(net(x).sum(), [x, *weights], create_graph=True)
            loss = sum(g.square().sum() for g in inner)
            if unread:
                with kernels.values_unread(weights):
                    gradient = torch.autograd.grad(loss, weights, create_graph=True)
            else:
                gradient = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(gradient, weights, along)

    def by_torch() -> tuple[Tensor, ...]:
        inner = torch.autograd.grad(net(x).sum(), [x, *weights], create_graph=True)
        loss = sum(g.square().sum() for g in inner)
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(gradient, weights, along)

    expected = by_torch()
    assert float(expected[0].abs().max()) > 1e-2
    for unread in (False, True):
        assert_equal(list(products(unread)), list(expected))


@FIRST_USE
def test_an_input_without_a_tangent_takes_no_pass() -> None:
    """As images have none: one pass for the values, one along the weights."""
    x, w = drawn((2, 2, 4, 4), (3, 2, 3, 3))

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            passes.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    passes: list[str] = []
    with forward_ad.dual_level(), torch.no_grad(), TwiceDifferentiable(), Counted():
        output = F.conv2d(x, forward_ad.make_dual(w, torch.ones_like(w)))
        tangent = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, F.conv2d(x, torch.ones_like(w)))
    assert passes.count("convolution") == 2


def test_values_are_read_again_outside() -> None:
    net = network()
    weights = list(net.parameters())
    x = torch.randn(4, 1, 7, 7, dtype=torch.float64)
    expected = torch.autograd.grad(net(x).square().sum(), weights)
    with differentiable_twice() as kernels:
        loss = net(x).square().sum()
        with pytest.raises(RuntimeError, match="stopped"), kernels.values_unread(weights):
            raise RuntimeError("stopped")
        assert_equal(list(torch.autograd.grad(loss, weights)), list(expected))


@pytest.mark.parametrize("layer", [conv, dense])
def test_a_gradient_that_goes_on_has_its_values(layer: Callable[[], Any]) -> None:
    """Of a weight that is computed from another, if both are asked for."""
    _, (base, _), x = two_layers(layer)

    def products(kernels: Any) -> list[Tensor]:
        weight = base.detach().clone().requires_grad_()
        computed = weight.exp()
        call = F.conv2d if layer is conv else F.linear
        loss = call(x, computed).tanh().square().sum()  # type: ignore[operator]
        both = [weight, computed]
        with kernels.values_unread(both) if kernels else nullcontext():
            gradient = torch.autograd.grad(loss, both, create_graph=True)
        return list(torch.autograd.grad(gradient, both, [torch.ones_like(t) for t in both]))

    with differentiable_twice() as kernels:
        ours = products(kernels)
    assert_equal(ours, products(None))


@pytest.mark.parametrize("layer", [conv, dense])
def test_a_vector_along_the_bias_alone_meets_no_infinite_input(layer: Callable[[], Any]) -> None:
    """Nothing times infinity is no number."""
    net = layer()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0] = torch.inf

    def products(kernels: Any) -> list[Tensor]:
        with kernels.values_unread(net.parameters()) if kernels else nullcontext():
            # Outputs beside the infinity are finite.
            loss = net(x)[1].sin().sum()
            gradient = torch.autograd.grad(loss, [net.bias], create_graph=True)
        return list(torch.autograd.grad(gradient, [net.bias], [torch.ones_like(net.bias)]))

    with differentiable_twice() as kernels:
        ours = products(kernels)
    assert ours[0].isfinite().all()
    assert_equal(ours, products(None))
