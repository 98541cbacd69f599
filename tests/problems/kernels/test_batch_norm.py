"""Batch norm with fused second derivatives, against finite differences and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from metaweight.problems.kernels.batch_norm import batch_norm
from metaweight.problems.kernels.twice_differentiable import TwiceDifferentiable
from support.devices import DEVICES
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

SHAPES = [(6, 3), (4, 3, 3), (3, 2, 3, 2), (2, 2, 2, 2, 2)]
# Torch's own forward mode, at its first use.
FIRST_USE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
# A card may add in another order when it repeats a pass.
REPEATED = 1e-10


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (shape[1],), (shape[1],)]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes]
    return [t.to(device, dtype).requires_grad_() for t in drawn]


def fused(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    with TwiceDifferentiable():
        return F.batch_norm(x, None, None, gamma, beta, training=True)


def plain(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True)


def by_definition(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    others = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(x, others, correction=0, keepdim=True)
    shape = (-1, *[1] * (x.ndim - 2))
    return (x - mean) / (variance + 1e-5).sqrt() * gamma.view(shape) + beta.view(shape)


def is_fused(output: Tensor) -> bool:
    assert output.grad_fn is not None
    return "_BatchNormBackward" in type(output.grad_fn).__name__


@FIRST_USE
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_equal_finite_differences(shape: tuple[int, ...], device: str) -> None:
    given = tuple(inputs(shape, device=device))
    assert is_fused(fused(*given))
    assert torch.autograd.gradcheck(fused, given, check_forward_ad=True, nondet_tol=REPEATED)
    assert torch.autograd.gradgradcheck(fused, given, check_fwd_over_rev=True, nondet_tol=REPEATED)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gamma_is_zero", [False, True])
def test_second_derivatives_equal_torchs(layout: torch.memory_format, gamma_is_zero: bool) -> None:
    """In double precision; 1e-12 leaves room for sums taken in another order."""
    x, gamma, beta = inputs((8, 3, 5, 5))
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    if gamma_is_zero:
        gamma = torch.zeros_like(gamma).requires_grad_()
    cotangents = [torch.randn_like(t) for t in (x, gamma, beta)]

    def second(normalise: object) -> tuple[Tensor, ...]:
        loss = normalise(x, gamma, beta).add(0.3).tanh().square().sum()  # type: ignore[operator]
        gradient = torch.autograd.grad(loss, [x, gamma, beta], create_graph=True)
        return torch.autograd.grad(gradient, [x, gamma, beta], cotangents)

    for ours, theirs in zip(second(fused), second(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_large_means_lose_no_more_digits_than_torch() -> None:
    """Single precision at a mean of 1000 deviations, against double."""
    given = inputs((64, 3, 6, 6))
    given[0] = (given[0].detach() + 1e3).requires_grad_()
    cotangent = torch.randn_like(given[0])

    def second(normalise: object, dtype: torch.dtype) -> Tensor:
        x, gamma, beta = (t.detach().to(dtype).requires_grad_() for t in given)
        loss = normalise(x, gamma, beta).square().square().sum()  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(gradient, x, cotangent.to(dtype))[0].double()

    truth = second(plain, torch.float64)
    errors = {
        f.__name__: float((second(f, torch.float32) - truth).norm() / truth.norm())
        for f in (fused, plain)
    }
    assert errors["fused"] <= 1.5 * errors["plain"] + 1e-6


def test_values_and_running_statistics_are_torchs() -> None:
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = inputs((8, 3, 5, 5), torch.float32)[0]
    with TwiceDifferentiable():
        output = ours(x)
    assert is_fused(output)
    assert torch.equal(output, theirs(x))
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}])
def test_layers_without_affine_part_or_statistics(settings: dict[str, bool]) -> None:
    layer = nn.BatchNorm1d(3, dtype=torch.float64, **settings)
    (x, *_) = inputs((6, 3))

    def apply(given: Tensor) -> Tensor:
        with TwiceDifferentiable():
            return layer(given)

    assert is_fused(apply(x))
    assert torch.autograd.gradgradcheck(apply, (x,))


def penalty(normalise: object, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    output = normalise(x, gamma, beta).tanh().sum()  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(output, x, create_graph=True)
    return gradient.square().sum()


@FIRST_USE
def test_a_loss_with_a_gradient_penalty_has_its_hessian() -> None:
    """Third derivatives of the layer, by a graph and by tangents."""
    given = inputs((5, 3, 2, 2))
    along = [torch.randn_like(t) for t in given]

    def products(normalise: object) -> tuple[Tensor, ...]:
        gradient = torch.autograd.grad(penalty(normalise, *given), given, create_graph=True)
        return torch.autograd.grad(gradient, given, along)

    def tangents() -> list[Tensor]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, u) for t, u in zip(given, along, strict=True)]
            gradient = torch.autograd.grad(penalty(fused, *duals), duals)
            return [forward_ad.unpack_dual(g).tangent for g in gradient]

    expected = products(by_definition)
    assert all(float(t.abs().max()) > 0.1 for t in expected)
    for answer in (products(fused), tangents()):
        for ours, theirs in zip(answer, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_other_calls_are_torchs_own() -> None:
    x, gamma, beta = inputs((6, 3), torch.float32)
    mean, variance = torch.zeros(3), torch.ones(3)
    with TwiceDifferentiable():
        evaluated = F.batch_norm(x, mean, variance, gamma, beta, training=False)
        half = F.batch_norm(x.bfloat16(), None, None, gamma, beta, training=True)
        in_func = torch.func.vmap(lambda t: F.batch_norm(t, None, None, training=True))(
            x.detach().expand(2, -1, -1)
        )
    for output in (evaluated, half):
        assert not is_fused(output)
    torch.testing.assert_close(in_func[1], F.batch_norm(x, None, None, training=True))


def test_one_value_a_channel_is_refused_as_by_torch() -> None:
    with TwiceDifferentiable(), pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.ones(1, 3), None, None, training=True)


def test_has_the_signature_of_torch() -> None:
    import inspect

    ours, theirs = inspect.signature(batch_norm), inspect.signature(F.batch_norm)
    assert list(ours.parameters) == list(theirs.parameters)
    assert all(
        p.default == theirs.parameters[name].default
        or math.isclose(p.default, theirs.parameters[name].default)
        for name, p in ours.parameters.items()
    )
