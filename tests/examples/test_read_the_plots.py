"""The example of good and bad runs, and their pictures."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "read_the_plots.py"


@pytest.mark.slow
def test_numbers_tell_the_runs_apart(tmp_path: Path) -> None:
    found = runpy.run_path(str(SCRIPT))["main"](tmp_path / "pictures")
    for name in found:
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
    assert found["good"]["weight of suspicious"] < 0.3 < found["good"]["of others"]
    # A third of the labels is redrawn: 70 % are right.
    assert 0.5 < found["good"]["effective_share"] < 0.9
    assert found["nothing_learned"]["effective_share"] > 0.98
    assert found["collapsed"]["effective_share"] < 0.5
    assert found["reversed"]["weight of suspicious"] > 1.2 * found["reversed"]["of others"]
