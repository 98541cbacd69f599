"""The example of three levels."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "three_levels.py"


@pytest.mark.slow
def test_learned_weights_make_the_pretrained_network_better(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = runpy.run_path(str(SCRIPT))["main"]()
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: pre-trained {before:.1f} %, fine-tuned {after:.1f} %"
        for name, (before, after) in found.items()
    ]
    assert found["learned"][0] > found["fixed"][0] + 3
    assert found["learned"][1] > found["fixed"][1] - 1
