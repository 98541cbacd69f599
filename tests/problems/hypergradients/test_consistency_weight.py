"""A learned weight between two quadratic losses, against answers worked out by hand.

Lower: ``½w² + λ ½(w - 2)²``; upper: ``½(w - 1.5)²``. One step of 0.1 from ``w = 0`` at ``λ = 1``
ends at ``w' = 0.2``, with ``dw'/dλ = 0.2``. Converged, ``w* = 2λ / (1 + λ) = 1`` and
``dw*/dλ = 2 / (1 + λ)² = ½``. Double precision; 1e-12 is rounding.
"""

from __future__ import annotations

import pytest
import torch
from metaweight.problems import Config, Hypergradient, Unroll
from torch import Tensor, nn

from metaweight import ConjugateGradient, Engine, EngineConfig, ImplicitProblem


class Number(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.value


class Lower(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Tensor:
        w = self.module()
        return (0.5 * w**2 + self.weight() * 0.5 * (w - 2) ** 2).sum()


class Upper(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Tensor:
        return (0.5 * (self.lower() - 1.5) ** 2).sum()


@pytest.mark.parametrize(
    ("method", "start", "lr", "end", "gradient"),
    [
        (Unroll(), 0.0, 0.1, 0.2, -0.26),
        (Unroll(product="forward_over_reverse"), 0.0, 0.1, 0.2, -0.26),
        (ConjugateGradient(iterations=3), 1.0, 0.1, 1.0, -0.25),
    ],
)
def test_gradient_of_the_weight(
    method: Hypergradient, start: float, lr: float, end: float, gradient: float
) -> None:
    net, weight = Number(start), Number(1.0)
    lower = Lower(
        "lower",
        Config(type=method),
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=lr),
        train_data_loader=[torch.zeros(1)],
    )
    upper = Upper(
        "weight",
        module=weight,
        # A step of 1 leaves the gradient in the parameter.
        optimizer=torch.optim.SGD(weight.parameters(), lr=1.0),
        train_data_loader=[torch.zeros(1)],
    )
    dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    Engine([upper, lower], EngineConfig(train_iters=1, strategy="cpu"), dependencies).run()
    assert net.value.item() == pytest.approx(end, abs=1e-12)
    assert 1.0 - weight.value.item() == pytest.approx(gradient, abs=1e-12)
