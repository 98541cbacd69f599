"""The example of learned settings, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "learned_settings.py"


@pytest.mark.slow
def test_every_setting_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(SCRIPT))["main"](steps=5)
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: {right:.2f} on right labels, {wrong:.2f} with 40 % redrawn"
        for name, (right, wrong) in found.items()
    ]
    assert len(found) == 3


@pytest.mark.slow
def test_trust_is_lower_in_wrong_labels() -> None:
    right, wrong = runpy.run_path(str(SCRIPT))["main"]()["trust of bootstrapping"]
    # Both start from 0.5.
    assert right > wrong + 0.02
