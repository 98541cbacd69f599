"""SAMA where a scheduler changes the optimizer's settings between a step and its hypergradient.

Adam is written out by hand for ``L = ½ (w - θ)²``, whose second derivatives are constant, so that
the central difference is exact and 1e-9 is rounding, divided by its length.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import Point
from torch import Tensor

from metaweight import SAMA, Config, Engine, ImplicitProblem

OF_STEP = [(0.1, 0.9), (0.3, 0.7), (0.05, 0.8), (0.9, 0.1)]
"""Learning rate and first momentum of each step, and what the scheduler leaves after the last."""


class Lower(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * ((self.module.w - self.upper.module.w) ** 2).sum()


class Upper(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return ((self.lower.module.w - 3) ** 2).sum()

    def grad_callback(self) -> None:
        self.seen.append(float(self.module.w.grad))


class Cycle(torch.optim.lr_scheduler.LRScheduler):
    """Changes the momentum too, as a cyclic scheduler does."""

    def get_lr(self) -> list[float]:
        rate, beta = OF_STEP[min(self.last_epoch, 3)]
        for group in self.optimizer.param_groups:
            group["betas"] = (beta, 0.999)
        return [rate for _ in self.optimizer.param_groups]


def by_hand(preconditioner: str) -> list[float]:
    w, first, second, found = 2.0, 0.0, 0.0, []
    products = [1.0, 1.0]
    for number, (rate, beta) in enumerate(OF_STEP[:3], 1):
        g = w - 0.5
        old_first, old_second = first, second
        first = beta * first + (1 - beta) * g
        second = 0.999 * second + 0.001 * g * g
        products = [1 - beta**number, 1 - 0.999**number]
        deviation = second**0.5 + 1e-8
        if preconditioner == "exact":
            spread = (second / products[1]) ** 0.5 + 1e-8
            slope = 0.001 * g / (second * products[1]) ** 0.5
            along = ((1 - beta) / spread - first * slope / spread**2) * rate / products[0]
        elif number == 1:
            along = rate * (1 - beta) / deviation
        else:
            bend = (1 - beta) * 0.999 * old_second - beta * 0.001 * g * old_first
            along = rate * bend / deviation**3
        w -= rate * first / products[0] / ((second / products[1]) ** 0.5 + 1e-8)
        found.append(along * 2 * (w - 3))
    return found


@pytest.mark.parametrize("preconditioner", ["source", "exact"])
def test_the_settings_are_those_of_the_step(preconditioner: str) -> None:
    net, theta = Point(2.0), Point(0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    lower = Lower(
        "lower",
        Config(type=SAMA(preconditioner=preconditioner)),
        net,
        optimizer,
        Cycle(optimizer),
        train_data_loader=[0],
    )
    upper = Upper(
        "upper",
        None,
        theta,
        torch.optim.SGD(theta.parameters(), lr=0.0),
        train_data_loader=[0],
    )
    upper.seen = []
    Engine.bilevel(upper, lower, train_iters=3, progress=False).run()
    assert optimizer.param_groups[0]["lr"] == 0.9
    assert upper.seen == pytest.approx(by_hand(preconditioner), rel=1e-9, abs=1e-12)
