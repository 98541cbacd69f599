"""Learned settings that are a parameter itself, and of optimizers without a rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.zoo import over
from torch import Tensor, nn

from metaweight import SAMA, Config, ConfigurationError, Engine, ImplicitProblem, IterativeProblem


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


class Numbers(nn.Module):
    """Two numbers, of which the second begins where its loss has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))


class Several(ImplicitProblem[Numbers]):
    def training_step(self, batch: Tensor) -> Tensor:
        return 0.5 * (self.module.value - batch).square().sum()

    def learned_settings(self) -> dict[str, Tensor]:
        return {name: self.upper.module.value.exp() for name in self.cfg}


class Far(Upper):
    def training_step(self, batch: Tensor) -> Tensor:
        return (self.lower.module.value - 3.0).square().sum()


def learns(kind: Any, names: tuple[str, ...], method: Any = "unroll", steps: int = 2) -> Engine:
    net, rate = Numbers(), Number(-2.0)
    lower = Several(
        "lower",
        Config(type=method, unroll_steps=steps),
        module=net,
        optimizer=kind(net.parameters()),
        train_data_loader=[torch.tensor(1.0, dtype=torch.float64)],
        extra_config=names,
    )
    upper = Far(
        "upper",
        module=rate,
        optimizer=torch.optim.SGD(rate.parameters(), lr=0.0),
        train_data_loader=[torch.zeros(())],
    )
    return over(upper, lower, train_iters=steps)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_rate_of_radam_is_learned(steps: int) -> None:
    """By a central difference of the loop itself: 1e-5 leaves 1e-10, and rounding 1e-11; torch
    counts steps in single precision."""

    def ended(log_rate: float) -> float:
        net = Numbers()
        optimizer = torch.optim.RAdam(net.parameters(), lr=math.exp(log_rate))
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * (net.value - 1.0).square().sum()).backward()
            optimizer.step()
        return (net.value.detach() - 3.0).square().sum().item()

    engine = learns(torch.optim.RAdam, ("lr",), steps=steps)
    engine.run()
    expected = (ended(-2.0 + 1e-5) - ended(-2.0 - 1e-5)) / 2e-5
    assert engine.upper.seen == pytest.approx(expected, rel=1e-6)


class Own(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("method", ["unroll", SAMA(preconditioner="exact")])
@pytest.mark.parametrize("name", ["ASGD", "NAdam", "Adamax", "Adadelta", "Rprop", "Own"])
def test_of_other_optimizers_they_are_refused_when_the_engine_is_built(
    name: str, method: Any
) -> None:
    kind = Own if name == "Own" else getattr(torch.optim, name)
    message = rf"'lower'.*steps of {name} cannot.*returns lr, and settings can be learned of SGD, A"
    steps = 1 if isinstance(method, SAMA) else 2
    with pytest.raises(ConfigurationError, match=message):
        learns(kind, ("lr",), method, steps)
    learns(kind, (), method, steps)


def test_another_setting_of_radam_is_refused() -> None:
    message = r"'lower'.*returns lr, weight_decay, and settings .* and the lr of RAdam, alone"
    with pytest.raises(ConfigurationError, match=message):
        learns(torch.optim.RAdam, ("lr", "weight_decay"))
