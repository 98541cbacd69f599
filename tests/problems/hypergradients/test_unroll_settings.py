"""What unrolled hypergradients refuse, and what they learn of settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.unrolled import (
    Lower,
    Setting,
    build,
    keep_gradients,
)
from support.unrolled_declared import MOMENTUM

from metaweight import (
    ConfigurationError,
    Unroll,
)


def test_an_optimizer_that_cannot_be_differentiated_is_refused() -> None:
    setting = Setting(torch.optim.Adafactor, {"lr": 0.1})
    with pytest.raises(
        ConfigurationError, match=r"'lower' asks for an unrolled.*Adafactor.*type='cg'"
    ):
        build(setting)


def test_more_steps_than_the_loop_has_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Unroll\(steps=5\).*unroll_steps=3.*raise"):
        build(Setting(steps=3), Unroll(steps=5))


def test_steps_of_the_users_own_are_refused_and_callbacks_warned_of() -> None:
    class Own(Lower):
        def custom_optimizer_step(self):
            pass

    class Clamped(Lower):
        def param_callback(self):
            pass

    with pytest.raises(ConfigurationError, match="steps of its own in custom_optimizer_step"):
        build(Setting(), lower=Own)
    with pytest.warns(UserWarning, match="Clamped.param_callback may change the steps"):
        build(Setting(), lower=Clamped)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ({"rate": torch.ones(())}, r"returns 'rate', which is no number.*lr, momentum"),
        ({"lr": torch.ones(2)}, r"for 'lr'; return a tensor of one number"),
        ([{}, {}], r"returns 2 mappings for an optimizer of 1 parameter groups"),
    ],
)
def test_learned_settings_are_checked(learned: Any, message: str) -> None:
    class Odd(Lower):
        def learned_settings(self):
            return learned

    engine = build(Setting(), lower=Odd)
    with pytest.raises(ConfigurationError, match=message):
        engine.train_step()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"head": torch.ones(1)}, r"'head', which is no parameter.*are 0.weight"),
        ({"0.weight": torch.ones(2)}, r"shape \(2,\) for '0.weight', which has shape \(6, 5\)"),
    ],
)
def test_initial_parameters_are_checked(given: Any, message: str) -> None:
    class Odd(Lower):
        def initial_parameters(self):
            return given

    engine = build(Setting(), lower=Odd)
    with pytest.raises(ConfigurationError, match=message):
        engine.train_step()


def test_learned_settings_are_what_the_optimizer_uses() -> None:
    engine = build(Setting(settings=MOMENTUM, learned=("lr", "momentum")))
    engine.train_step()
    group = engine.lower.optimizer.param_groups[0]
    learned = engine.upper.module.learned()
    assert group["lr"] == pytest.approx(float(learned["lr"].detach()))
    assert group["momentum"] == pytest.approx(float(learned["momentum"].detach()))


def test_status_tells_how_many_steps_it_went_back() -> None:
    engine = build(Setting(steps=4), Unroll(steps=2))
    keep_gradients(engine)
    for _ in range(4):
        engine.train_step()
    status = engine.lower.hypergradient_status
    assert status is not None
    assert status.describe() == "Unroll, iterations 2"
