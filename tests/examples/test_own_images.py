"""The example of a folder of images."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "own_images.py"


@pytest.mark.slow
def test_it_lists_the_moved_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPT))
    assert "images listed" in capsys.readouterr().out
    # A quarter is in a wrong folder, so that a list drawn at random would hold a quarter.
    assert found["found"] > 0.8 * len(found["issues"])
    assert found["found"] > 0.8 * len(found["moved"])
    with Image.open("suspicious.png") as picture:
        assert min(picture.size) > 300
