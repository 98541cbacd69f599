"""The profile of a step is taken and written."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("betty")


def test_profile_is_written(run_script: Any, tmp_path: Any) -> None:
    run = run_script("speed_profile.py", "--rounds", "1", "--batch-size", "2", "--out", "here")
    assert run.returncode == 0, run.stderr
    tables = json.loads((tmp_path / "here" / "profile.json").read_text())["tables"]
    times = {row["what"]: row["ms"] for row in tables["passes of a ResNet-32 step"]}
    assert times["forward without a graph"] < times["forward and backward, as of the upper level"]
    calls = {row["program"]: row for row in tables["Python calls of a toy step"]}
    assert calls["hand-written"]["of the library"] == 0
    assert calls["metaweight"]["of the library"] > 50
    assert calls["metaweight"]["of the program"] == calls["betty-ml"]["of the program"]
