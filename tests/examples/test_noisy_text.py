"""The example of noisy texts."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "noisy_text.py"


@pytest.mark.slow
# torch's loaders warn of pinned memory where there is no GPU.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_wrong_labels_weigh_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPT))
    right, wrong = found["right"], found["wrong"]
    assert f"right labels {right:.2f}, of wrong labels {wrong:.2f}" in capsys.readouterr().out
    # The mean over all is 1. Three seeds gave 1.4 or more, and 0.1 or less.
    assert right > 1.2
    assert wrong < 0.4


def test_it_is_short() -> None:
    code = SCRIPT.read_text().rpartition('"""')[2]
    assert len([line for line in code.splitlines() if line]) <= 25
