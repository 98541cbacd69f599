"""Stopping when a validation metric stands still."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.small import problem, single

from metaweight import ConfigurationError, EarlyStopping, Engine

NAN = math.nan


def answers(stopping: EarlyStopping, *values: float) -> list[bool]:
    return [stopping({stopping.metric: value}) for value in values]


def test_smaller_is_better_by_default() -> None:
    stopping = EarlyStopping(tolerance=2)
    assert answers(stopping, 3.0, 2.0, 2.0, 1.0, 1.5, 1.0) == [False] * 5 + [True]
    assert stopping.best == 1.0


def test_larger_is_better_in_mode_max() -> None:
    stopping = EarlyStopping("acc", tolerance=2, mode="max")
    assert answers(stopping, 0.1, 0.5, 0.4, 0.5) == [False, False, False, True]
    assert stopping.best == 0.5


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_not_a_number_never_improves(mode: str) -> None:
    stopping = EarlyStopping(tolerance=3, mode=mode)
    assert answers(stopping, NAN, 1.0, NAN, NAN, NAN) == [False, False, False, False, True]
    assert stopping.best == 1.0
    assert answers(EarlyStopping(tolerance=2, mode=mode), NAN, NAN) == [False, True]


def test_tensors_are_read_as_numbers() -> None:
    stopping = EarlyStopping(tolerance=1)
    assert stopping({"loss": torch.tensor(2.0)}) is False
    assert stopping({"loss": torch.tensor([2.0])}) is True


@pytest.mark.parametrize(("stats", "shown"), [({"b": 1, "a": 2}, r"\['a', 'b'\]"), ({}, "nothing")])
def test_a_missing_metric_is_named_beside_those_there_are(stats: Any, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=f"watches 'acc', but validation returned {shown}"):
        EarlyStopping("acc")(stats)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0}, r"EarlyStopping\(tolerance=0\) must be an integer of at least 1"),
        ({"mode": "least"}, r"EarlyStopping\(mode='least'\) is not one of min, max"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EarlyStopping(**settings)


def test_state_goes_on_where_it_was_saved() -> None:
    first = EarlyStopping(tolerance=2)
    answers(first, 1.0, 2.0)
    second = EarlyStopping(tolerance=2)
    second.load_state_dict(first.state_dict())
    assert (second.best, second.waited) == (1.0, 1)
    assert answers(second, 1.0) == [True]


class Scripted(Engine):
    """Validation returns one value after another."""

    script = (3.0, 2.0, 2.5, 2.5, 1.0, 1.0)

    def validation(self) -> dict[str, float]:
        return {"loss": self.script[self.global_step - 1]}


def test_a_run_ends_where_the_metric_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    engine = single(
        problem(),
        engine=Scripted,
        steps=6,
        valid_step=1,
        early_stopping=True,
        early_stopping_tolerance=2,
    )
    with caplog.at_level("INFO", logger="metaweight"):
        engine.run()
    assert engine.global_step == 4
    assert caplog.messages[-1] == (
        "Early stopping: loss has not improved on 2.0 for 2 validations."
    )


def test_the_configuration_sets_metric_mode_and_tolerance() -> None:
    engine = single(
        problem(),
        engine=Scripted,
        early_stopping=True,
        early_stopping_metric="acc",
        early_stopping_mode="max",
        early_stopping_tolerance=7,
        progress=False,
    )
    (stopping,) = engine.hooks.hooks
    assert (stopping.metric, stopping.mode, stopping.tolerance) == ("acc", "max", 7)
