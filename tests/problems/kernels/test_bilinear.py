"""Layers whose weight gradients need no values, against differences and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from metaweight.problems.kernels import torch_internals
from metaweight.problems.kernels.linear import LEAST
from metaweight.problems.kernels.twice_differentiable import (
    TwiceDifferentiable,
    differentiable_twice,
)
from support.devices import DEVICES
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers of any size are ours here."""
    for kind in ("cpu", "cuda"):
        monkeypatch.setitem(LEAST, kind, 0)


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


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """In double precision; 1e-12 leaves room for sums taken in another order."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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


def conv() -> nn.Module:
    return nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)


def dense() -> nn.Module:
    return nn.Linear(4, 4, dtype=torch.float64)


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


def test_other_calls_are_torchs_own() -> None:
    x, w = drawn((2, 2, 4, 4), (3, 2, 3, 3))
    with TwiceDifferentiable():
        assert is_ours(F.conv2d(x, w))
        assert not is_ours(F.conv2d(x, w, padding="same"))
        assert not is_ours(F.conv2d(x[0], w))
        assert is_ours(F.conv2d(input=x, weight=w)) is False
        assert not is_ours(F.conv2d(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.conv2d(x.float(), w.float()).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda image: F.conv2d(image, w))(x.unsqueeze(1))
    torch.testing.assert_close(mapped.squeeze(1), F.conv2d(x, w))


def test_other_calls_of_linear_layers_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = drawn((3, 4), (2, 4))
    with TwiceDifferentiable():
        assert is_ours(F.linear(x, w))
        assert not is_ours(F.linear(x, w[0]))
        assert not is_ours(F.linear(x, w.detach()))
        assert not is_ours(F.linear(input=x, weight=w))
        assert not is_ours(F.linear(x.to(torch.complex128), w.to(torch.complex128)))
        with torch.autocast("cpu", torch.bfloat16):
            assert F.linear(x.float(), w.float()).dtype == torch.bfloat16
        mapped = torch.func.vmap(lambda sample: F.linear(sample, w))(x)
        with forward_ad.dual_level():
            assert not is_ours(F.linear(forward_ad.make_dual(x, x), w))
        monkeypatch.setitem(LEAST, "cpu", 25)
        assert not is_ours(F.linear(x, w))
    torch.testing.assert_close(mapped, F.linear(x, w))
    with TwiceDifferentiable(reads_values=True):
        assert not is_ours(F.linear(x, w))


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


def two_layers(layer: Callable[[], Any]) -> tuple[nn.Module, list[Tensor], Tensor]:
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(layer(), nn.Tanh(), layer())
    return net, [net[0].weight, net[2].weight], torch.randn(2, 1, 4, 4, dtype=torch.float64)


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


def normed(layer: Callable[[], Any]) -> Callable[[], Any]:
    """Return a network with batch norm around a layer."""

    def made() -> nn.Module:
        channels = nn.BatchNorm1d(4) if layer is dense else nn.BatchNorm2d(1)
        return nn.Sequential(layer(), channels.double(), nn.Tanh(), layer())

    return made


# torch's own batch norm has no rule for several vectors: a loop, of which it warns.
LOOPS = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@LOOPS
@pytest.mark.parametrize(
    ("layer", "vectorized"),
    [
        *((one, how) for one in (conv, dense) for how in ("is_grads_batched", "jacobian", "vmap")),
        # torch cannot map the pass of its own batch norm.
        *((normed(one), how) for one in (conv, dense) for how in ("is_grads_batched", "jacobian")),
    ],
)
def test_penalties_of_jacobians_keep_their_graph(layer: Callable[[], Any], vectorized: str) -> None:
    """A pass for several vectors at once drops the graph of a function within."""
    torch.default_generator.manual_seed(0)
    net = layer()
    shape = (3, 4) if any(isinstance(m, nn.BatchNorm1d) for m in net.modules()) else (2, 1, 4, 4)
    x = torch.randn(shape, dtype=torch.float64)
    weights = list(net.parameters())

    def penalty() -> Tensor:
        given = x.clone().requires_grad_()
        if vectorized == "jacobian":
            rows = torch.autograd.functional.jacobian(
                lambda t: net(t).flatten()[:3], given, create_graph=True, vectorize=True
            )
            return rows.square().sum()
        out = net(given).flatten()[:3]

        def row(along: Tensor, batched: bool = False) -> Tensor:
            settings = {"create_graph": True, "is_grads_batched": batched}
            return torch.autograd.grad(out, given, along, **settings)[0]

        along = torch.eye(3, dtype=torch.float64)
        if vectorized == "vmap":
            return torch.func.vmap(row)(along).square().sum()
        return row(along, batched=True).square().sum()

    def by_loop() -> Tensor:
        given = x.clone().requires_grad_()
        out = net(given).flatten()[:3]
        rows = [torch.autograd.grad(o, given, create_graph=True)[0] for o in out]
        return torch.stack(rows).square().sum()

    expected = torch.autograd.grad(by_loop(), weights, allow_unused=True)
    with differentiable_twice():
        found = torch.autograd.grad(penalty(), weights, allow_unused=True)
    assert float(expected[0].abs().max()) > 1e-3
    assert_equal(*[[torch.zeros(()) if g is None else g for g in all] for all in (found, expected)])


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


class Noted(Tensor):
    """A tensor that sees what is computed with it."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Duck:
    """What torch takes for a tensor."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func, len(args)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_linear_layers_of_other_things_than_tensors_are_torchs_own() -> None:
    x, w = drawn((3, 4), (2, 4))
    Noted.seen.clear()
    with TwiceDifferentiable():
        F.linear(x, weight=w.as_subclass(Noted))
        assert F.linear in Noted.seen
        assert F.linear(x, Duck()) == (F.linear, 3)  # type: ignore[comparison-overlap, arg-type]
        for sparse in (x.detach().to_sparse(), x.detach().to_sparse_csr()):
            assert not is_ours(F.linear(sparse, w))
        # A sample without a batch, which may be changed in place.
        one = F.linear(x[0], w, w[:, 0])
        assert not is_ours(one)
        one.relu_()
        for bias in (torch.ones(1, 2), torch.ones(3, 2), torch.ones(1), torch.ones(())):
            wide = bias.double().requires_grad_()
            assert not is_ours(F.linear(x, w, wide))


def test_a_weight_may_be_written_to_where_no_gradient_reads_it() -> None:
    """By the input, of which data have none."""
    _, w = drawn((3, 4), (2, 4))
    x = torch.ones(3, 4, dtype=torch.float64)
    with differentiable_twice():
        loss = F.linear(x, w).sin().sum()
        with torch.no_grad():
            w.clamp_(-0.1, 0.1)
        (found,) = torch.autograd.grad(loss, [w])
    assert found.isfinite().all()


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
