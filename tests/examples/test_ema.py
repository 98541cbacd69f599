"""The moving-average example, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ema.py"


def test_student_and_teacher_are_printed_and_learn(capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = runpy.run_path(str(SCRIPT))["main"](epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1] == f"epoch  3: student {student:.1f} %, teacher {teacher:.1f} %"
    # Chance is 10 %.
    assert student > 50
    assert teacher > 50
