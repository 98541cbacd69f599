"""The example of learned hyper-parameters."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "hyperparameters.py"


@pytest.mark.slow
def test_one_is_as_good_as_a_grid_and_many_are_better(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(SCRIPT))["main"]()
    grid, one, many = (test for _, test in found.values())
    assert one == pytest.approx(grid, abs=0.05)
    assert many < 0.5 * grid
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    pixels, noise = map(float, re.findall(r"\d\.\d{4}", lines[-1]))
    assert noise > 10 * pixels
