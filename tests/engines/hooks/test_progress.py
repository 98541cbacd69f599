"""The progress bar, read from standard error, and the lines of a log."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch
from metaweight.engines import Hook
from metaweight.engines.hooks import progress
from metaweight.engines.hooks.base import HookList
from support.small import Inner, bilevel, problem, single

from metaweight import ConfigurationError, Engine, EngineConfig, ProgressBar, ProgressLine


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


class Watched:
    """A run whose every iteration takes ``tick`` seconds of its own clock, and what it logs."""

    def __init__(self, tick: float, *, steps: int, seconds: float = 30.0) -> None:
        self.now, self.tick = 1000.0, tick
        self.messages: list[tuple[float, str]] = []
        line = ProgressLine(seconds, clock=lambda: self.now)
        inner = problem(Inner, "inner", lr=0.1)
        self.engine = bilevel(inner=inner, steps=steps, engine=self.engine_class(), hooks=[line])
        self.engine.logger.info = lambda text: self.messages.append((self.now - 1000, text))

    def engine_class(self) -> type[Engine]:
        watched = self

        class Ticking(Engine):
            def train_step(self) -> None:
                super().train_step()
                watched.now += watched.tick

        return Ticking


def test_a_log_gets_a_line_every_thirty_seconds() -> None:
    watched = Watched(7.5, steps=10)
    losses = []

    class Told(Hook):
        def iteration_end(self, engine: Engine) -> None:
            below = 0.5 * (engine.inner.module.w.item() - 3.0) ** 2
            losses.append(f"outer: loss={below:.4g} lr=0.1")

    watched.engine.hooks = HookList([Told(), *watched.engine.hooks.hooks])
    watched.engine.run()
    (first_at, first), (second_at, second) = watched.messages
    assert (first_at, second_at) == (30.0, 60.0)
    assert first.startswith("[Progress] 4/10 steps, 0.1333 a second, 00:45 left, inner: loss=")
    assert second.startswith("[Progress] 8/10 steps, 0.1333 a second, 00:15 left, inner: loss=")
    assert first.endswith(losses[3])
    assert second.endswith(losses[7])


def test_a_line_shows_losses_of_the_last_thirtieth_of_its_time() -> None:
    watched = Watched(0.25, steps=121)
    losses = []

    class Told(Hook):
        def iteration_end(self, engine: Engine) -> None:
            below = 0.5 * (engine.inner.module.w.item() - 3.0) ** 2
            losses.append(f"outer: loss={below:.4g} lr=0.1")

    watched.engine.hooks = HookList([Told(), *watched.engine.hooks.hooks])
    watched.engine.run()
    ((at, line),) = watched.messages
    assert at == 30.0
    # Step 117 begins after 29 seconds, the first in the second that step 120 ends.
    assert line.endswith(losses[116])
    assert losses[116] not in losses[117:]


def test_the_speed_is_that_since_the_line_before() -> None:
    watched = Watched(10.0, steps=20, seconds=20.0)
    watched.engine.train_iters = 4
    watched.engine.run()
    watched.tick, watched.engine.train_iters = 2.0, 20
    watched.engine.run()
    told = [
        text.partition(", inner")[0].removeprefix("[Progress] ") for _, text in watched.messages
    ]
    assert told == [
        "2/4 steps, 0.1 a second, 00:20 left",
        "4/4 steps, 0.1 a second, 00:00 left",
        "10/20 steps, 0.5 a second, 00:20 left",
        "20/20 steps, 0.5 a second, 00:00 left",
    ]


def test_a_step_without_a_line_reads_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []
    watched = Watched(10.0, steps=7)
    shown = progress._values_of
    monkeypatch.setattr(
        progress, "_values_of", lambda losses: read.append(watched.now) or shown(losses)
    )
    watched.engine.run()
    assert read == [1030.0, 1060.0]


def test_one_process_logs_lines() -> None:
    watched = Watched(40.0, steps=2)
    watched.engine.is_rank_zero = lambda: False
    watched.engine.run()
    assert watched.messages == []


def lines(engine: Any) -> list[ProgressLine]:
    return [hook for hook in engine.hooks.hooks if isinstance(hook, ProgressLine)]


def test_lines_are_logged_by_default_where_there_is_no_terminal() -> None:
    assert len(lines(single(problem()))) == 1
    assert lines(single(problem(), progress=False)) == []
    assert lines(single(problem(), progress=True)) == []
    assert lines(single(problem(), hooks=[ProgressBar()])) == []
    own = ProgressLine(5)
    assert lines(single(problem(), hooks=[own])) == [own]
    with redirect_stderr(Terminal()):
        assert lines(single(problem())) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0}, r"ProgressLine\(seconds=0\) must be a number above 0 and finite; 30 is"),
        ({"clock": 3}, r"ProgressLine\(clock=3\) must be a function"),
    ],
)
def test_wrong_settings_of_lines_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ProgressLine(**settings)


def test_it_is_true_false_or_left_out() -> None:
    with pytest.raises(ConfigurationError, match=r"progress='bar'\) must be True or False"):
        EngineConfig(progress="bar")  # type: ignore[arg-type]
