"""The scaling benchmark runs two processes, reads off what they say, and models more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_one_and_two_processes_are_timed_and_written(run_script: Any, tmp_path: Path) -> None:
    arguments = ("--workload", "mlp", "--batch", "8", "--steps", "2", "--rounds", "1")
    run = run_script("scaling.py", *arguments, "--out", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    rows = {row["contender"]: row for row in found["mlp"]["rows"]}
    assert list(rows) == ["one process", "two together", "two apart"]
    # The gradient of each level, and the vector of the hypergradient.
    assert rows["two together"]["reductions"] == 3
    assert rows["two together"]["bytes"] > 2 * 4 * rows["two together"]["parameters"]
    machines = found["mlp, more machines"]["rows"]
    assert sorted({row["at"] for row in machines}) == [2, 4, 8, 16, 64]


def test_more_machines_and_slower_networks_cost_efficiency(benchmark_modules: None) -> None:
    scaling = pytest.importorskip("scaling")
    rows = scaling.modelled(0.1, 3, 4_000_000)
    found = {(row["contender"], row["at"]): row["efficiency"] for row in rows}
    slow, fast, _ = (network.name for network in scaling.NETWORKS)
    assert found[slow, 64] < found[slow, 2] < found[fast, 2]
    # Two machines: 3 · 2 · 30 µs and 4 MB at 1.1 GB/s beside 100 ms.
    assert found[slow, 2] == pytest.approx(0.1 / (0.1 + 180e-6 + 4e6 / 1.1e9), rel=1e-12)
