"""The progress bar, read from standard error."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch
from metaweight.engines.hooks import progress
from support.small import Inner, bilevel, problem, single

from metaweight import ConfigurationError, Engine, EngineConfig, ProgressBar


class Validating(Engine):
    def validation(self) -> dict[str, Any]:
        return {"acc": torch.tensor(0.123456)}


def test_the_bar_counts_steps_and_shows_the_last_validation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    single(problem(), engine=Validating, steps=4, valid_step=2, hooks=[ProgressBar("inner")]).run()
    last = capsys.readouterr().err.rstrip("\n").split("\r")[-1]
    assert last.startswith("inner: 100%")
    assert "4/4" in last
    assert "acc=0.1235" in last


def test_the_configuration_turns_it_on_and_it_is_off_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    single(problem(), steps=2).run()
    assert capsys.readouterr().err == ""
    single(problem(), steps=2, progress=True).run()
    assert "2/2" in capsys.readouterr().err


def test_a_second_run_has_its_own_bar(capsys: pytest.CaptureFixture[str]) -> None:
    engine = single(problem(), steps=3, progress=True)
    engine.run()
    engine.run()
    assert capsys.readouterr().err.count("3/3") == 2


def test_the_bar_is_closed_when_a_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Engine):
        def train_step(self) -> None:
            raise RuntimeError("broken")

    bar = ProgressBar()
    with pytest.raises(RuntimeError, match="broken"):
        single(problem(), engine=Failing, hooks=[bar]).run()
    assert bar._bar.disable
    assert capsys.readouterr().err.endswith("\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_run_shows_losses_and_rates_by_default() -> None:
    with redirect_stderr(Terminal()) as terminal:
        engine = bilevel(inner=problem(Inner, "inner", lr=0.1), steps=3)
        engine.run()
    last = terminal.getvalue().rstrip("\n").split("\r")[-1]
    assert "3/3" in last
    inner, outer = (getattr(engine, name) for name in ("inner", "outer"))
    assert inner.optimizer.param_groups[0]["lr"] == 0.1
    assert "inner: loss=" in last
    assert last.count("lr=0.1") == 2
    assert f"outer: loss={0.5 * (inner.module.w.item() - 3.0) ** 2:.4g}" in last
    assert outer.count == 3


def test_never_shown_where_that_is_said_or_given_twice() -> None:
    with redirect_stderr(Terminal()) as terminal:
        single(problem(), steps=2, progress=False).run()
        assert terminal.getvalue() == ""
        single(problem(), steps=2, hooks=[ProgressBar("mine")]).run()
    assert terminal.getvalue().count("mine: 100%") == terminal.getvalue().count("2/2")


def test_without_a_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.shows_on_terminal()
    single(problem(), steps=2).run()


def test_losses_are_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of a tenth of a second a step: every fifth step, and the last."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    read: list[float] = []

    class Counting(ProgressBar):
        def _show(self) -> None:
            read.append(now[0])
            super()._show()

        def after_step(self, *args: Any) -> None:
            now[0] += 0.125
            super().after_step(*args)

    single(problem(), steps=10, hooks=[Counting()]).run()
    assert read == [0.5, 1.0, 1.25]


def test_it_is_true_false_or_left_out() -> None:
    with pytest.raises(ConfigurationError, match=r"progress='bar'\) must be True or False"):
        EngineConfig(progress="bar")  # type: ignore[arg-type]
