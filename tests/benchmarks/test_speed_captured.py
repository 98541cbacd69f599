"""Small steps by Python and as a graph: every contender is measured."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.mark.slow
def test_it_measures_each_way_of_taking_steps(benchmark_modules, tmp_path):
    module = importlib.import_module("speed_captured")
    words = [
        "--rounds",
        "1",
        "--processes",
        "1",
        "--iterations",
        "20",
        "--program",
        "toy, finite differences",
    ]
    assert module.main([*words, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed_captured.json").read_text())
    rows = {row["contender"]: row for row in report["toy, finite differences"]["rows"]}
    assert {"Python", "replayed", "compiled", "hand-written"} <= {*rows}
    assert all(row["ms"] > 0 for name, row in rows.items() if name != "betty-ml")
    assert rows["Python"]["times Python"] == 1


def test_a_failure_is_a_row_with_its_error(benchmark_modules):
    module, turns = (importlib.import_module(name) for name in ("speed_captured", "turns"))
    outcomes = {
        "Python": turns.Outcome(turns=[turns.Turn(0.1, 0.1, 1.0)] * 3),
        "compiled": turns.Outcome(error="no compiler"),
    }
    python, compiled = module.rows(outcomes, 100)
    assert python["ms"] == pytest.approx(1.0) and python["times Python"] == 1
    assert compiled["failed"] == "no compiler" and compiled["ms"] is None


def test_turns_of_all_processes_are_joined(benchmark_modules):
    module, turns = (importlib.import_module(name) for name in ("speed_captured", "turns"))
    one, two = (turns.Outcome(turns=[turns.Turn(wall, wall, 1.0)]) for wall in (0.1, 0.3))
    failed = turns.Outcome(error="no compiler")
    found = module.merged([{"a": one, "b": two}, {"a": two, "b": failed}])
    assert [turn.wall for turn in found["a"].turns] == [0.1, 0.3]
    assert found["b"].error == "no compiler"
