"""The filter benchmark runs, checks that both agree, and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cleanlab")


def test_both_are_timed_and_written(run_script: Any, tmp_path: Path) -> None:
    run = run_script(
        "confident_joint.py", "--rounds", "2", "--repeats", "2", "--out", str(tmp_path / "out")
    )
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((tmp_path / "out" / "confident_joint.json").read_text())["rows"]
    assert row["batch"] == 256 and row["classes"] == 100
    assert row["metaweight µs"] > 0 and row["ratio"] > 1
    assert "times as fast" in run.stdout
