"""The mixup example, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "mixup.py"


@pytest.mark.slow
def test_every_method_is_printed_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(SCRIPT))["main"](steps=30)
    heading, *lines = capsys.readouterr().out.splitlines()
    # 0.4 of 1297 are 518, a tenth of which keep their label.
    assert heading == "1297 training digits, 36.4 % wrong labels, 30 steps each"
    assert lines == [f"{name:<26}{value:5.1f} %" for name, value in found.items()]
    assert len(found) == 6
    # Chance is 10 %.
    assert all(value > 50 for value in found.values()), found
