"""The example of learned settings, shortened."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "learned_settings.py"


def test_every_setting_is_printed_and_trust_is_lower_in_wrong_labels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = runpy.run_path(str(SCRIPT))["main"](steps=200)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{name}: {right:.2f} on right labels, {wrong:.2f} with 40 % redrawn"
        for name, (right, wrong) in found.items()
    ]
    assert len(lines) == 3
    # Both start from 0.5.
    right, wrong = found["trust of bootstrapping"]
    assert right > wrong + 0.02
