"""Complex parameters: all as if their real and imaginary parts were parameters of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.covering import covering
from support.methods import GRADIENT_METHODS
from support.zoo import over
from torch import Tensor, nn

from metaweight import (
    AdaptiveInterval,
    Config,
    ConjugateGradient,
    Engine,
    ImplicitProblem,
    NormLogger,
    Nystrom,
    ReweightedProblem,
    ZeroOrder,
)
from metaweight.products import unrolled_vjp

METHODS = {
    **GRADIENT_METHODS,
    # Above the negative curvature of these losses.
    "cg": ConjugateGradient(iterations=2, damping=5.0),
    "nystrom": Nystrom(rank=5, damping=5.0),
    "zero order": ZeroOrder(samples=2),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.02, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
}


class Spectrum(nn.Module):
    """A linear map by complex numbers, stored as such or as pairs of real numbers."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        z = torch.randn(4, 3, generator=drawn, dtype=torch.complex128) / 2
        bias = torch.randn(3, generator=drawn, dtype=torch.float64) / 2
        self.z = nn.Parameter(z if kind == "complex" else torch.view_as_real(z).clone())
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.z if self.z.is_complex() else torch.view_as_complex(self.z)
        return torch.tanh((x.to(z.dtype) @ z).abs().square() - 1) + self.bias


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        weight = torch.sigmoid(self.upper(x).mean(1))
        return (weight * (self.module(x) - y).square().mean(1)).mean()


class Weighed(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.module(x) - y).square().mean(1)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.sigmoid(self.upper(batch[0]).mean(1) + losses)


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.lower(x) - y).square().sum() + 0.1 * self.module(x).square().sum()


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(5, 4, generator=drawn, dtype=torch.float64),
            torch.randn(5, 3, generator=drawn, dtype=torch.float64),
        )
        for _ in range(4)
    ]


def run(
    method: Any, kind: type, below: str, above: str, optimizer: Callable[..., Any], clip: float = 0
) -> list[Tensor]:
    """Two steps of each level; the parameters, as real numbers."""
    low, up = Spectrum(below, 0), Spectrum(above, 1)
    config = Config(type=method, unroll_steps=2, gradient_clipping=clip)
    lower = kind("lower", config, low, optimizer(low.parameters()), train_data_loader=batches(2))
    step = torch.optim.SGD(up.parameters(), lr=1.0)
    upper = Upper("upper", None, up, step, train_data_loader=batches(3))
    engine: Engine = over(upper, lower, train_iters=4)
    torch.default_generator.manual_seed(0)
    engine.run()
    found = [*up.parameters(), *low.parameters()]
    return [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in found]


CASES = covering(
    {
        name: list(OPTIMIZERS) if name.startswith(("unroll", "sama")) else ["sgd", "adam"]
        for name in METHODS
    },
    whole=["unroll"],
)


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_they_are_pairs_of_real_numbers(name: str, optimizer: str) -> None:
    """The same numbers in another storage: equal but for rounding, which the differences magnify by
    the inverse of their lengths."""
    kind = Weighed if "reweighting" in name else Lower
    close = 1e-8 if "one-sided" not in name else 1e-6
    expected = run(METHODS[name], kind, "real", "real", OPTIMIZERS[optimizer])
    found = run(METHODS[name], kind, "complex", "real", OPTIMIZERS[optimizer])
    torch.testing.assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("name", ["unroll", "unroll, kept graphs", "darts", "cg"])
def test_so_are_those_of_the_upper_problem_and_clipped_ones(name: str, clip: float) -> None:
    method = METHODS[name]
    expected = run(method, Lower, "real", "real", OPTIMIZERS["adam"], clip)
    for below, above in (("real", "complex"), ("complex", "complex")):
        found = run(method, Lower, below, above, OPTIMIZERS["adam"], clip)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_step_of_ones_own_is_differentiated_by_its_complex_state() -> None:
    """``z -> z²`` twice: ``z⁴``, whose gradient convention is torch's."""
    z = torch.tensor([0.3 + 0.4j], dtype=torch.complex128)
    v = torch.tensor([1.0 - 2.0j], dtype=torch.complex128)
    found = unrolled_vjp([lambda state: [state[0] ** 2]] * 2, [z], [v])
    torch.testing.assert_close(found.state[0], v * (4 * z**3).conj())


@pytest.mark.parametrize("above", ["real", "complex"])
def test_the_check_of_a_hypergradient_computes_in_double_precision(above: str) -> None:
    low, up = Spectrum("complex", 0), Spectrum(above, 1)
    low.z.data = low.z.data.to(torch.complex64)
    optimizer = OPTIMIZERS["sgd"](low.parameters())
    lower = Lower("lower", Config(type="unroll"), low, optimizer, train_data_loader=batches(2))
    step = torch.optim.SGD(up.parameters(), lr=1.0)
    upper = Upper("upper", None, up, step, train_data_loader=batches(3))
    (report,) = over(upper, lower, train_iters=4).check_hypergradient()
    assert report.trustworthy, str(report)


@pytest.mark.parametrize("roll_back", [False, True])
def test_hooks_of_the_engine_and_checkpoints_take_them(tmp_path: Path, roll_back: bool) -> None:
    low, up = Spectrum("complex", 0), Spectrum("complex", 1)
    optimizer = OPTIMIZERS["adam"](low.parameters())
    lower = Lower("lower", Config(type="unroll"), low, optimizer, train_data_loader=batches(2))
    step = torch.optim.SGD(up.parameters(), lr=1.0)
    upper = Upper("upper", None, up, step, train_data_loader=batches(3))
    hooks = [NormLogger(every=1), AdaptiveInterval("upper")]
    engine = over(upper, lower, train_iters=4, hooks=hooks, non_finite="raise", roll_back=roll_back)
    engine.run()
    engine.save(tmp_path / "state.pt")
    before = [p.detach().clone() for p in (*low.parameters(), *up.parameters())]
    for p in (*low.parameters(), *up.parameters()):
        p.data.zero_()
    engine.load(tmp_path / "state.pt")
    after = [p.detach() for p in (*low.parameters(), *up.parameters())]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
