"""Fused attention stays on in first-order passes, and gives way where more is differentiated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernels import called_kernels
from support.naive import relative_error
from support.zoo import ColumnWeighed, Judge, over
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    FiniteDifference,
    Penalty,
    Reweighting,
    Unroll,
)

FIRST_ORDER = {
    "central": Reweighting(derivative="central_difference"),
    "one-sided": Reweighting(derivative="one_sided"),
    "darts": FiniteDifference(),
    "sama": SAMA(),
    "penalty": Penalty(steps=3),
    "unroll, differences": Unroll(product="finite_difference"),
}
SECOND_ORDER = {
    "forward mode": Reweighting(derivative="forward_mode"),
    "unroll": Unroll(),
    "conjugate gradient": ConjugateGradient(damping=1.0),
}


class Attention(nn.Module):
    """Two heads over a sequence of five, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.inward(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


def program(method: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Samples weighed by their losses, at one batch; the weights are only looked at."""
    torch.default_generator.manual_seed(0)
    net = Attention().to(dtype)
    weigh = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()).to(dtype)
    data = [(torch.randn(6, 5, 4, dtype=dtype), torch.randint(0, 3, (6,))) for _ in range(2)]
    lower = ColumnWeighed(
        "lower",
        Config(type=method),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=data[:1],
    )
    upper = Judge(
        "upper", None, weigh, torch.optim.SGD(weigh.parameters(), 1.0), train_data_loader=data[1:]
    )
    return over(upper, lower, train_iters=1)


def learned(engine: Any) -> list[Tensor]:
    before = [p.detach().clone() for p in engine.upper.module.parameters()]
    engine.run()
    after = engine.upper.module.parameters()
    return [a - b.detach() for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("method", FIRST_ORDER.values(), ids=FIRST_ORDER)
def test_first_order_passes_keep_fused_attention(method: Any) -> None:
    engine = program(method)
    called = called_kernels(engine.run)
    assert called.by_parts == 0
    assert called.fused > 4, "more than forward and backward of the two losses"


@pytest.mark.parametrize("method", SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_passes_that_are_differentiated_again_do_without_it(method: Any) -> None:
    engine = program(method)
    assert called_kernels(engine.run).by_parts > 0
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("method", FIRST_ORDER.values(), ids=FIRST_ORDER)
def test_what_is_learned_does_not_depend_on_the_kernel(method: Any) -> None:
    """Differences divide rounding of double precision by their length: to 1e-6."""
    fused = learned(program(method, torch.float64))
    with sdpa_kernel(SDPBackend.MATH):
        by_parts = learned(program(method, torch.float64))
    assert relative_error(fused, by_parts) < 1e-6
