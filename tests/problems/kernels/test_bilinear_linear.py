"""Linear maps whose weight gradients need no values, against differences and torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from metaweight.problems.kernels import bilinear
from metaweight.problems.kernels.twice_differentiable import (
    TwiceDifferentiable,
    differentiable_twice,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

FIRST_USE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
CASES = {
    "rows": ((4, 3), (2, 3)),
    "sequences": ((2, 3, 4), (5, 4)),
    "one sample": ((1, 3), (1, 3)),
}


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of tests are small."""
    monkeypatch.setattr(bilinear, "LEAST_PRODUCTS", {"cpu": 0, "cuda": 0})
    yield


def drawn(*shapes: tuple[int, ...], device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [t.to(device).requires_grad_() for t in made]


def is_ours(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ == "_BilinearBackward"


@FIRST_USE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_finite_differences(case: str, bias: bool, device: str) -> None:
    x, w = CASES[case]
    given = drawn(x, w, *[w[:1]] * bias, device=device)
    with TwiceDifferentiable():
        assert is_ours(F.linear(*given))

    def apply(*arguments: Tensor) -> Tensor:
        with TwiceDifferentiable():
            # Bent, since a linear map's own second derivatives by one argument are zero.
            return F.linear(*arguments).sin()

    assert torch.autograd.gradcheck(apply, tuple(given), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, tuple(given), check_fwd_over_rev=True)


@FIRST_USE
@pytest.mark.parametrize("constant", [0, 1, 2])
def test_derivatives_where_one_argument_is_constant(constant: int) -> None:
    given = drawn((4, 3), (2, 3), (2,))
    given[constant].requires_grad_(False)
    free = [t for t in given if t.requires_grad]

    def apply(*arguments: Tensor) -> Tensor:
        arguments = (*arguments[:constant], given[constant], *arguments[constant:])
        with TwiceDifferentiable():
            return F.linear(*arguments).sin()

    assert torch.autograd.gradcheck(apply, tuple(free), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, tuple(free), check_fwd_over_rev=True)


@FIRST_USE
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_tangents_of_gradients_where_one_argument_moves(moved: int) -> None:
    """Of the gradients by input, weight and bias, some have no tangent then."""
    given = drawn((4, 3), (2, 3), (2,))

    def tangents(ours: bool) -> list[Tensor]:
        with forward_ad.dual_level(), TwiceDifferentiable() if ours else nullcontext():
            dual = forward_ad.make_dual(given[moved], torch.ones_like(given[moved]))
            arguments = [*given[:moved], dual, *given[moved + 1 :]]
            found = torch.autograd.grad((F.linear(*arguments) * 3.0).sum(), arguments)
            along = [forward_ad.unpack_dual(g).tangent for g in found]
            return [
                torch.zeros_like(g) if t is None else t for g, t in zip(given, along, strict=True)
            ]

    assert_equal(tangents(ours=True), tangents(ours=False))


@FIRST_USE
def test_unread_gradients_have_tangents() -> None:
    """Forward over reverse where values are not read: what is read is right."""
    x, w = drawn((4, 3), (2, 3))
    along = torch.ones_like(w)

    def tangent(unread: bool) -> Tensor:
        with forward_ad.dual_level(), differentiable_twice() as kernels:
            dual = forward_ad.make_dual(w, along)
            loss = F.linear(x, dual).sin().sum()
            with kernels.values_unread([w, dual] if unread else []):
                by_x, by_w = torch.autograd.grad(loss, [x, dual], create_graph=True)
            assert bool(by_w.any()) is not unread
            return forward_ad.unpack_dual(by_x).tangent

    torch.testing.assert_close(tangent(unread=True), tangent(unread=False))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double()


def inputs() -> Tensor:
    return torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def hessian_products(
    net: nn.Module, x: Tensor, *, unread: bool, read: tuple[bool, ...] | None = None
) -> list[Tensor]:
    """Return ``∂<∇L, u>/∂w``; without values of the gradients but those ``read``, or by torch."""
    weights = list(net.parameters())
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    with differentiable_twice() if unread else nullcontext() as kernels:
        loss = net(x).square().sum()
        with kernels.values_unread(weights) if kernels is not None else nullcontext():
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
    if unread:
        have_values = [bool(g.detach().any()) for g in gradient if g.ndim == 2]
        assert have_values == list(read or [False] * len(have_values))
    found = torch.autograd.grad(gradient, weights, along, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """In double precision; 1e-12 leaves room for sums taken in another order."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_products_need_no_values_of_the_gradient() -> None:
    net, x = network(), inputs()
    assert_equal(hessian_products(net, x, unread=True), hessian_products(net, x, unread=False))


def test_a_hook_on_a_weight_reads_its_gradient() -> None:
    """A hook that is not linear: its derivative needs the value."""
    net, x = network(), inputs()
    net[2].weight.register_hook(lambda g: g.pow(3))
    ours = hessian_products(net, x, unread=True, read=(False, True, False))
    assert_equal(ours, hessian_products(net, x, unread=False))


def test_a_weight_used_twice_counts_twice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            twice = self.layer(self.layer(x).tanh()).tanh()
            return twice + F.embedding(torch.tensor(1), self.layer.weight.pow(3))

    torch.manual_seed(0)
    net, x = Tied(), inputs()
    ours = hessian_products(net, x, unread=True, read=(True,))
    assert_equal(ours, hessian_products(net, x, unread=False))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_computed_has_its_gradient_read() -> None:
    net, x = network(), inputs()
    nn.utils.parametrizations.weight_norm(net[2])
    ours = hessian_products(net, x, unread=True, read=(False, True, True, False))
    assert_equal(ours, hessian_products(net, x, unread=False))


def test_third_derivatives() -> None:
    """A gradient penalty: what it reads of the inner gradient has its values."""
    net, x = network(), inputs().requires_grad_()
    # The last bias does not enter a gradient.
    weights = list(net.parameters())[:-1]
    along = [torch.ones_like(p) for p in weights]

    def products(unread: bool) -> tuple[Tensor, ...]:
        with differentiable_twice() if unread else nullcontext() as kernels:
            inner = torch.autograd.grad(net(x).sum(), [x, *weights], create_graph=True)
            loss = sum(g.square().sum() for g in inner)
            with kernels.values_unread(weights) if kernels is not None else nullcontext():
                gradient = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(gradient, weights, along)

    expected = products(unread=False)
    assert float(expected[0].abs().max()) > 1e-2
    assert_equal(list(products(unread=True)), list(expected))


class Counted(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "matmul", "bmm")
        return func(*args, **(kwargs or {}))


@FIRST_USE
def test_an_input_without_a_tangent_takes_no_product() -> None:
    x, w = inputs()[0], network()[0].weight
    with forward_ad.dual_level(), torch.no_grad(), differentiable_twice(), Counted() as counted:
        output = F.linear(x, forward_ad.make_dual(w, torch.ones_like(w)))
        tangent = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, x.sum(1, keepdim=True).expand_as(tangent))
    assert counted.products == 2


def test_unread_values_take_no_product() -> None:
    """Forward one, then along u: one for the input's cotangent, one for the weight's."""
    x, w = inputs()[0], network()[0].weight
    with differentiable_twice() as kernels, Counted() as counted:
        loss = F.linear(x, w).square().sum()
        with kernels.values_unread([w]):
            (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        torch.autograd.grad(gradient, w, torch.ones_like(w))
    assert counted.products == 3


def test_other_calls_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = drawn((4, 3), (2, 3))
    with TwiceDifferentiable():
        assert is_ours(F.linear(x, w))
        assert not is_ours(F.linear(x[0], w))
        assert not is_ours(F.linear(x, w[0]))
        assert not is_ours(F.linear(input=x, weight=w))
        assert not is_ours(F.linear(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(x.float(), w.float()).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda sample: F.linear(sample, w))(x.unsqueeze(1))
        torch.testing.assert_close(mapped.squeeze(1), F.linear(x, w))
        monkeypatch.setattr(bilinear, "LEAST_PRODUCTS", {"cpu": 25})
        assert not is_ours(F.linear(x, w))
        assert is_ours(F.linear(torch.cat([x, x]), w))
