"""The example of MAML."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "maml.py"


@pytest.mark.slow
def test_the_learned_start_adapts_further(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(SCRIPT))["main"]()
    joint, learned = found[5]
    assert learned < 0.5 * joint
    # Before it adapts it knows no wave either.
    assert found[0][1] > 2 * learned
    assert len(capsys.readouterr().out.splitlines()) == 4
