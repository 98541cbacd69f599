"""The progress bar, read from standard error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import problem, single

from metaweight import Engine, ProgressBar


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
