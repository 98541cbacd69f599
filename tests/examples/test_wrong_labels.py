"""The example of wrong labels in a CSV file."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "wrong_labels.py"


@pytest.mark.slow
def test_it_lists_the_wrong_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pd = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPT))
    issues, wrong = found["issues"], found["wrong"]
    assert f"{len(issues)} labels listed" in capsys.readouterr().out
    # A tenth of the labels is wrong, so that a list drawn at random would hold a tenth. Three seeds
    # gave 0.84 or more of both.
    assert found["found"] > 0.75 * len(issues)
    assert found["found"] > 0.75 * wrong.sum()
    lines = Path("patients.csv").read_text().splitlines()
    first = pd.read_csv("suspicious.csv").iloc[0]
    assert lines[first["line"] - 1].split(",")[-2] == first["given"] != first["suggested"]
