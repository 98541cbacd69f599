"""The example of an ensemble that finds wrong labels, with fewer steps."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "online_ensemble.py"


@pytest.mark.slow
def test_wrong_labels_are_left_out_and_weigh_less(capsys: pytest.CaptureFixture[str]) -> None:
    results = runpy.run_path(str(EXAMPLE))["main"](steps=25, member_steps=30)
    printed = capsys.readouterr().out
    for name in ("one member", "all samples", "resampled", "reweighted", "learned weights"):
        assert f"{results[name]:5.1f} %" in printed and name in printed
    # 40 % redrawn over ten classes: about 36 % wrong. Scores leave out nearly all of these.
    assert results["wrong before"] == pytest.approx(36, abs=3)
    assert results["wrong kept"] < 6
    # 25 steps are too few to learn wrong labels by heart; what was left out must not hurt.
    assert results["resampled"] > 80
    wrong, right = (results[f"weight of {kind} labels"] for kind in ("wrong", "right"))
    assert wrong < right
