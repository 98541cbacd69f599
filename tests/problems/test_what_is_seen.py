"""What an upper problem would learn without a hypergradient is refused when the engine is built."""

from __future__ import annotations

from typing import Any

import pytest
from support.reweighting import Declared, program
from torch import Tensor

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    FiniteDifference,
    GraphError,
    Neumann,
    Nystrom,
    Penalty,
    Reinforce,
    Reweighting,
    Unroll,
)

BLIND = [
    FiniteDifference(),
    Reweighting(),
    SAMA(),
    Neumann(),
    ConjugateGradient(),
    Nystrom(),
    Penalty(),
    Reinforce(samples=2),
]


class LearnsSettings(Declared):
    def learned_settings(self) -> dict[str, Tensor]:
        return {"lr": self.judge.module.layers[-1].bias.exp().squeeze()}


class LearnsStart(Declared):
    def initial_parameters(self) -> dict[str, Tensor]:
        return {"0.bias": self.judge.module.layers[-1].bias.expand(16)}


@pytest.mark.parametrize("method", BLIND, ids=lambda method: type(method).__name__)
def test_settings_that_would_never_be_learned(method: Any) -> None:
    name = type(method).__name__
    message = rf"'classifier' defines learned_settings, but {name} gives .*Config\(type='unroll'\)"
    with pytest.raises(GraphError, match=message):
        program(LearnsSettings, config=Config(type=method))


@pytest.mark.parametrize(
    "method",
    [*BLIND, SAMA(preconditioner="exact"), Unroll(steps=1)],
    ids=lambda method: type(method).__name__,
)
def test_starts_that_would_never_be_learned(method: Any) -> None:
    name = type(method).__name__
    message = rf"'classifier' defines initial_parameters, but {name} gives .*or 'zero_order'"
    with pytest.raises(GraphError, match=message):
        program(LearnsStart, config=Config(type=method, unroll_steps=2))


@pytest.mark.parametrize("kind", [LearnsSettings, LearnsStart])
@pytest.mark.parametrize("method", ["unroll", "t1t2", "zero_order"])
def test_methods_that_see_them(kind: Any, method: str) -> None:
    program(kind, config=Config(type=method)).train_step()


def test_sama_sees_settings() -> None:
    program(LearnsSettings, config=Config(type=SAMA(preconditioner="exact"))).train_step()
