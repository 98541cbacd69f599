"""The semi-supervised example, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "semi_supervised.py"


@pytest.mark.slow
def test_students_and_teachers_are_printed_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    results = runpy.run_path(str(SCRIPT))["main"](steps=30)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[-2:]] == ["labels alone", "Mean Teacher"]
    # A guess is right in 10 % of cases.
    assert all(value > 30 for found in results.values() for value in found.values())
