"""The input benchmark measures every feed, and takes waiting for what it is."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed_input(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("speed_input")


@pytest.mark.slow
def test_every_feed_is_measured_and_written(run_script: Any, tmp_path: Path) -> None:
    arguments = ("--network", "small", "--rounds", "1", "--steps", "2", "--batch-size", "4")
    run = run_script("speed_input.py", *arguments, "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "speed_input.json").read_text())
    rows = {row["contender"]: row for row in report["small"]["rows"]}
    assert len(rows) == 7
    assert rows["one fixed batch"]["times one fixed batch"] == 1.0
    for row in rows.values():
        assert 0 < row["ms waiting"] < row["ms a step"]
        assert row["share waiting"] == pytest.approx(row["ms waiting"] / row["ms a step"])
    assert "| PIL, SampleLoader, 2 workers |" in (tmp_path / "speed_input.md").read_text()


def test_waiting_is_the_time_of_the_draws_alone(speed_input: Any) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    watched = speed_input.Watched(slow())
    for _ in watched:
        time.sleep(0.05)
    assert len(watched.draws) == 3
    assert all(0.02 <= seconds < 0.05 for seconds in watched.draws)


def test_steps_and_waits_leave_out_the_warm_up(speed_input: Any) -> None:
    setting = speed_input.Setting("small", 4, steps=2, warm_ups=3, device="cpu")
    durations = iter([0.1, 0.1, 0.1, 0.01, 0.01])
    seconds = speed_input.seconds_each(lambda: time.sleep(next(durations)), setting)
    assert 0.01 <= seconds < 0.05
    assert next(durations, None) is None
