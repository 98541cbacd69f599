"""The score-function hypergradient of networks with segments under activation checkpointing, with
complex parameters, and where there is no double precision.

The oracle is the same program without segments, and with real and imaginary parts as parameters of
their own, at the same decisions; its estimate is compared with exact sums elsewhere. Tolerance:
relative 1e-12, since the operations are the same but for their order.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.naive import relative_error
from support.without_double import WithoutDouble
from support.zoo import over
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaweight import Config, Engine, ImplicitProblem, Reinforce, ZeroOrder

STEPS = 2


class Quadratic(nn.Module):
    """``x·a + (x·b)²`` with ``a`` and ``b`` as they are, or parts of one complex parameter."""

    def __init__(self, dtype: torch.dtype, kind: str, start: float) -> None:
        super().__init__()
        self.kind = kind
        a, b = torch.tensor([[start, 0.4], [-0.3, start]], dtype=dtype)
        if kind == "complex":
            self.w = nn.Parameter(torch.complex(a, b))
        else:
            self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("reentrant", "not reentrant"):
            found: Tensor = checkpoint(self._value, x, use_reentrant=self.kind == "reentrant")
            return found
        return self._value(x)

    def _value(self, x: Tensor) -> Tensor:
        whole = self.kind == "complex"
        a, b = (self.w.real, self.w.imag) if whole else (self.a, self.b)
        return x @ a + (x @ b).square()

    def gradient(self) -> list[Tensor]:
        """By ``a`` and by ``b``."""
        if self.kind == "complex":
            return [self.w.grad.real.clone(), self.w.grad.imag.clone()]
        return [self.a.grad.clone(), self.b.grad.clone()]


class Chooser(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        keep = torch.distributions.Bernoulli(logits=self.policy(x))
        kept = keep.sample()
        losses = (self.module(x) - y).square()
        return {"loss": (kept * losses).mean(), "log_prob": keep.log_prob(kept)}


class Policy(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return (self.chooser(x).detach() - y).abs().mean()


def estimate(method: Any, below: str, above: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(8, 2, generator=generator).to(dtype),
            torch.randn(8, generator=generator).to(dtype),
        )
        for _ in range(STEPS)
    ]
    low, up = Quadratic(dtype, below, 0.2), Quadratic(dtype, above, -0.1)
    adam = torch.optim.Adam(low.parameters(), 0.05)
    rest = torch.optim.SGD(up.parameters(), 0.0)
    chooser = Chooser("chooser", Config(type=method, unroll_steps=STEPS), low, adam, None, data)
    policy = Policy("policy", None, up, rest, None, data[:1])
    seen: list[Tensor] = []
    policy.grad_callback = lambda: seen.extend(up.gradient())  # type: ignore[method-assign]
    engine: Engine = over(policy, chooser, train_iters=STEPS)
    torch.default_generator.manual_seed(0)
    for _ in range(STEPS):
        engine.train_step()
    assert all(t.isfinite().all() and t.any() for t in seen)
    return seen


KINDS = [("reentrant", "not reentrant"), ("not reentrant", "reentrant"), ("complex", "complex")]


@pytest.mark.parametrize(("below", "above"), KINDS)
@pytest.mark.parametrize("baseline", ["leave_one_out", "start"])
def test_segments_and_complex_parameters_change_nothing(
    below: str, above: str, baseline: str
) -> None:
    method = Reinforce(baseline=baseline, samples=3)
    expected = estimate(method, "real", "real", torch.float64)
    found = estimate(method, below, above, torch.float64)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    "method", [Reinforce(samples=3), ZeroOrder(samples=2, radius=2.0)], ids=repr
)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_no_double_precision_is_used(method: Any, kind: str) -> None:
    with WithoutDouble():
        found = estimate(method, kind, kind, torch.float32)
    assert all(t.dtype == torch.float32 for t in found)
