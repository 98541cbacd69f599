"""The vectors along which unrolled hypergradients take products: their memory and their size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.naive import relative_error
from support.zoo import over
from torch import Tensor, nn

from metaweight import Config, IterativeProblem, Unroll


class Dot(torch.autograd.Function):
    """``<a, b>`` as part of a loss, whose backward pass hands on what it has saved as it is."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.dot(a, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return b, a


class Vectors(nn.Module):
    def __init__(self, *values: list[float], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.of = nn.ParameterList([nn.Parameter(torch.tensor(v, dtype=dtype)) for v in values])


def lower_loss(a: Tensor, b: Tensor, t: Tensor, r: Tensor) -> Tensor:
    return Dot.apply(a, b) + Dot.apply(a, t) + (b**3 * r).sum()


def upper_loss(a: Tensor, b: Tensor) -> Tensor:
    return (a**2).sum() + (b**3).sum() + (a * b).sum()


class Lower(IterativeProblem):
    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(*self.module.of, *self.upper.module.of)


class Upper(IterativeProblem):
    def training_step(self, batch: Any) -> Tensor:
        return upper_loss(*self.lower.module.of)


LOWER, UPPER = ([1.0, 2.0, 3.0], [0.5, -1.0, 2.0]), ([0.3, 0.2, 0.1], [0.3, 0.2, 0.1])


def gradient_of(
    lower: type,
    upper: type,
    modules: tuple[nn.Module, nn.Module],
    kind: Unroll,
    steps: int,
    sgd: dict[str, Any],
) -> list[Tensor]:
    net, weights = modules
    data = [torch.ones(1)]
    low = lower(
        "lower",
        Config(type=kind, unroll_steps=steps),
        net,
        torch.optim.SGD(net.parameters(), **sgd),
        train_data_loader=data,
    )
    up = upper(
        "upper",
        None,
        weights,
        torch.optim.SGD(weights.parameters(), lr=0.0),
        train_data_loader=data,
    )
    engine = over(up, low, train_iters=1)
    seen: list[Tensor] = []
    up.grad_callback = lambda: seen.extend(p.grad.clone() for p in weights.parameters())
    for _ in range(steps):
        engine.train_step()
    return seen


def naive(steps: int, lr: float, momentum: float = 0.0, maximize: bool = False) -> list[Tensor]:
    """Steps of SGD in one graph, without :class:`Dot`."""
    w, theta = (
        [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
        for values in (LOWER, UPPER)
    )
    (a, b), (t, r), buffers = w, theta, [0.0, 0.0]
    for _ in range(steps):
        loss = torch.dot(a, b) + torch.dot(a, t) + (b**3 * r).sum()
        found = torch.autograd.grad(-loss if maximize else loss, (a, b), create_graph=True)
        buffers = [momentum * m + g for m, g in zip(buffers, found, strict=True)]
        a, b = (x - lr * m for x, m in zip((a, b), buffers, strict=True))
    return list(torch.autograd.grad(upper_loss(a, b), theta))


@pytest.mark.parametrize("memory", ["flat", "full"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    "sgd",
    [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 1.0, "maximize": True},
        {"lr": 1.0, "maximize": True, "momentum": 0.5},
    ],
    ids=str,
)
def test_a_derivative_may_hand_on_the_vector_itself(
    sgd: dict[str, Any], steps: int, memory: str
) -> None:
    """The cotangents of the step before are then sums of what is being written to. Only rounding
    differs."""
    modules = Vectors(*LOWER), Vectors(*UPPER)
    found = gradient_of(Lower, Upper, modules, Unroll(memory=memory), steps, sgd)
    assert relative_error(found, naive(steps, **sgd)) < 1e-12


class Steep(IterativeProblem):
    def training_step(self, batch: Any) -> Tensor:
        (w,), (t,) = self.module.of, self.upper.module.of
        return 400 * ((w - 0.9 * t) ** 2).sum()


class Scaled(IterativeProblem):
    def training_step(self, batch: Any) -> Tensor:
        (w,) = self.lower.module.of
        return 64 * (w**2).sum()


@pytest.mark.filterwarnings("ignore:Problem .* trains parameters of type float16")
@pytest.mark.parametrize("memory", ["flat", "full"])
@pytest.mark.parametrize(
    "sgd",
    [
        {"lr": 1e-3},
        {"lr": 1e-3, "momentum": 0.5},
        {"lr": 1e-3, "momentum": 1e-3, "nesterov": True},
    ],
    ids=str,
)
def test_half_precision_overflows_no_sooner_than_the_step(sgd: dict[str, Any], memory: str) -> None:
    """A cotangent of 128, times a Hessian of 800 overflows, and times the rate it does not; divided
    by a small momentum neither. Tolerance: 11 bits, a few times rounded."""

    def found(dtype: torch.dtype) -> list[Tensor]:
        modules = Vectors([1.0, 0.5], dtype=dtype), Vectors([1.0, 0.5], dtype=dtype)
        return gradient_of(Steep, Scaled, modules, Unroll(memory=memory), 3, sgd)

    half, expected = found(torch.float16), found(torch.float64)
    assert relative_error([t.double() for t in half], expected) < 0.02
