"""The step benchmark runs every contender and writes what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_toy_workload_is_measured_and_written(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--workload", "toy", "--rounds", "2"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "speed.json").read_text())
    assert set(report) == {"toy 1", "toy 100"}
    for workload in report.values():
        rows = {row["contender"]: row for row in workload["rows"]}
        assert {"hand-written", "metaweight"} <= set(rows)
        assert rows["hand-written"]["times hand-written"] == 1.0
        assert all(row["median ms"] > 0 for row in rows.values())
    assert "| metaweight |" in (tmp_path / "speed.md").read_text()
