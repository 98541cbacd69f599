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
    found = json.loads((tmp_path / "out" / "mlp.json").read_text())
    assert [row["processes"] for row in found["rows"]] == [
        "one process",
        "two together",
        "two apart",
    ]
    # The gradient of each level, and the vector of the hypergradient.
    assert found["reductions a step"] == 3
    assert found["bytes a step"] > 2 * 4 * found["parameters"]


def test_more_machines_and_slower_networks_cost_efficiency(benchmark_modules: None) -> None:
    scaling = pytest.importorskip("scaling")
    slow, fast, _ = scaling.modelled(0.1, 3, 4_000_000)
    assert float(slow["P = 64"][:-1]) < float(slow["P = 2"][:-1]) < float(fast["P = 2"][:-1])
    # Two machines: 3 · 2 · 30 µs and 4 MB at 1.1 GB/s beside 100 ms.
    assert slow["P = 2"] == f"{0.1 / (0.1 + 180e-6 + 4e6 / 1.1e9):.1%}"
