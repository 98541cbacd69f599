"""The profile of a step is taken and written."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("betty")


@pytest.mark.slow
def test_profile_is_written(run_script: Any, tmp_path: Any) -> None:
    run = run_script("speed_profile.py", "--rounds", "1", "--batch-size", "2", "--out", "here")
    assert run.returncode == 0, run.stderr
    tables = json.loads((tmp_path / "here" / "profile.json").read_text())["tables"]
    times = {row["what"]: row["ms"] for row in tables["passes of a ResNet-32 step"]}
    passes = (
        times["forward and backward, as of the upper level"] + 2 * times["forward without a graph"]
    )
    left_over = next(ms for what, ms in times.items() if "less" in what)
    plain, whole = times["plain step: forward, backward, SGD"], times["metaweight, native"]
    assert left_over == pytest.approx(whole - plain - passes)
    rows = {(row["program"], row["on"]): row for row in tables["small steps"]}
    for program, by_hand in (
        ("toy", "hand-written"),
        ("three levels", "hand-written"),
        ("one level", "plain step"),
    ):
        ours, betty = rows[program, "metaweight"], rows[program, "betty-ml"]
        assert rows[program, by_hand]["of the library"] == 0
        assert ours["of the library"] > 50
        assert ours["of the program"] == betty["of the program"]
        assert ours["operations"] > 10 < betty["operations"]
    parts = {row["what"] for row in tables["parts of a step of three levels"]}
    assert "parameters displaced, and put back exactly" in parts
