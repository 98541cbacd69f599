"""What pages show of semi-supervised methods: from a report, or not at all."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.fixture
def pages(benchmark_modules):
    return importlib.import_module("pages.consistency")


def run(student, teacher):
    return {"test": {"student": [0.0, student], "teacher": [0.0, teacher]}}


@pytest.fixture
def shown(pages, tmp_path):
    """Return what is shown of a report whose cells differ by how they are named."""
    cells = [
        {"method": method, "divergence": divergence, "runs": {"1": run(60, 80), "0": run(50, 72)}}
        for method in pages.METHODS
        for divergence in pages.DIVERGENCES
    ]
    cells[5]["runs"] = {"0": run(61, 90), "1": run(63, 90)}
    alone = {"0": run(50, 70), "1": run(60, 76)}
    cells.append({"method": "supervised", "divergence": None, "runs": alone})
    folder = tmp_path / pages.FOLDER / "digits"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"cells": cells}))
    return pages.Consistency(tmp_path).shown


def test_gains_are_seed_by_seed_and_the_best_is_marked(shown):
    assert shown("accuracy", "digits", "vat/kl", "student") == "55.0 ± 7.1"
    # 72 - 70 and 80 - 76, whose order in the report is another.
    assert shown("gain", "digits", "vat/kl", "supervised") == "+3.0 ± 1.4"
    lines = shown("table", "digits").strip().splitlines()
    assert len(lines) == 2 + 7
    usual = "55.0 / 76.0 (+3.0 ± 1.4)"
    assert lines[2] == f"| Pseudo-Label | {usual} | {usual} | {usual} | {usual} |"
    assert lines[3] == f"| Π-model | {usual} | **62.0 / 90.0 (+17.0 ± 4.2)** | {usual} | {usual} |"


def test_commands_are_those_that_the_script_takes(pages, shown, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parse = importlib.import_module("ssl_svhn").parse
    for name in pages.ASKED:
        options = parse(pages.command(name).split()[2:])
        assert options.out == pages.FOLDER / name
    assert shown("command", "digits", "foreign-mixmatch").strip().splitlines()[1] == (
        "python benchmarks/ssl_svhn.py --out benchmarks/results/consistency/digits"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("table", "letters"), "'letters' is not a report; known are digits, foreign"),
        (("gain", "digits", "mixup/kl", "supervised"), "digits has no 'mixup/kl'; it has pseudo"),
        (("sum", "digits"), "'sum' is not shown of consistency; table, command"),
    ],
)
def test_what_there_is_not_is_refused(shown, asked, message):
    with pytest.raises(ValueError, match=message):
        shown(*asked)


def test_a_missing_report_is_named_with_its_command(pages, shown):
    error = importlib.import_module("pages.sweeps").MissingRunError
    with pytest.raises(error, match=r"mixmatch/summary\.json is missing; make it by: python"):
        shown("gain", "foreign-mixmatch", "mixmatch/mse", "supervised")
