"""Learned settings that are an upper problem's parameter itself, as it stands."""

from __future__ import annotations

import torch
from support.zoo import over
from torch import Tensor, nn

from metaweight import Config, ImplicitProblem, IterativeProblem


class Number(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start, dtype=torch.float64))


class Lower(IterativeProblem[Number]):
    def training_step(self, batch: Tensor) -> Tensor:
        return 0.5 * (self.module.value - batch).square()

    def learned_settings(self) -> dict[str, Tensor]:
        return {"lr": self.upper.module.value}


class Upper(ImplicitProblem[Number]):
    def training_step(self, batch: Tensor) -> Tensor:
        value: Tensor = self.lower.module.value
        return value - batch

    def grad_callback(self) -> None:
        assert self.module.value.grad is not None
        self.seen = float(self.module.value.grad)


def test_a_parameter_is_taken_without_a_warning() -> None:
    """One step of ``w - lr (w - x)``: the derivative of ``w`` in ``lr`` is ``x - w = 3``."""
    net, rate = Number(1.0), Number(0.25)
    lower = Lower(
        "lower",
        Config(),
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=7.0),
        train_data_loader=[torch.tensor(4.0, dtype=torch.float64)],
    )
    upper = Upper(
        "upper",
        module=rate,
        optimizer=torch.optim.SGD(rate.parameters(), lr=0.0),
        train_data_loader=[torch.tensor(0.0, dtype=torch.float64)],
    )
    over(upper, lower).train_step()
    assert float(net.value.detach()) == 1.0 + 0.25 * 3.0
    assert upper.seen == 3.0
