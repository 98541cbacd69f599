"""The estimator on small sets: records, table and what pages show."""

from __future__ import annotations

import importlib
import json

import pytest
from sklearn import datasets


@pytest.fixture
def small(benchmark_modules, monkeypatch):
    module = importlib.import_module("small_sets")
    monkeypatch.setattr(module, "SETS", {"iris": module.shipped(datasets.load_iris)})
    return module


def test_it_leaves_a_record_a_case_and_goes_on(small, tmp_path, capsys, monkeypatch):
    words = [
        *("--out", str(tmp_path), "--noise", "20 % pairwise", "--seeds", "2"),
        *("--setting", "epochs=3"),
    ]
    assert small.main(words) == 0
    printed = capsys.readouterr().out
    records = [
        json.loads((tmp_path / f"iris-20-pairwise-seed{seed}.json").read_text()) for seed in (0, 1)
    ]
    assert all(set(each["accuracy"]) == set(small.METHODS) for each in records)
    assert all(30 < value <= 100 for each in records for value in each["accuracy"].values())
    mean = sum(each["accuracy"]["reweighter"] for each in records) / 2
    assert printed.splitlines()[2].split(" | ")[3] == f"{mean:.1f}"
    monkeypatch.setattr(small.Case, "accuracies", None)
    assert small.main(words) == 0
    assert capsys.readouterr().out == printed


def test_noise_clean_and_test_samples_are_apart(small):
    case = small.Case("iris", "40 % uniform", 3)
    (x, noisy), (clean, labels), (test, _) = case.split(small.SETS["iris"])
    assert (len(x), len(clean), len(test)) == (90, 15, 45)
    assert sorted(labels) == [0] * 5 + [1] * 5 + [2] * 5
    again = case.split(small.SETS["iris"])
    assert (again[0][1] == noisy).all()
    _, truth = datasets.load_iris(return_X_y=True)
    x_all, _ = datasets.load_iris(return_X_y=True)
    right = [truth[(x_all == row).all(1)][0] for row in x]
    # Two fifths are redrawn among the two other classes or wrong by as many.
    assert 20 < (right != noisy).sum() < 50


def test_pages_show_what_the_records_say(small, tmp_path, monkeypatch):
    pages = importlib.import_module("pages.small")
    folder = tmp_path / small.RESULTS.relative_to(pages.ROOT)
    folder.mkdir(parents=True)
    cases = small.cases_of(False, pages.SEEDS, [*small.NOISES])
    for case in cases:
        gain = 3.0 if case.noise != "none" else -0.5
        accuracy = {"ce": 80.0, "reweighter": 80 + gain}
        (folder / small.name_of(case)).write_text(json.dumps({"accuracy": accuracy}))
    shown = pages.SmallSets(tmp_path).shown
    assert shown("gain", "reweighter", "ce") == "2.3"
    assert shown("loss", "reweighter", "ce") == "0.5"
    assert "| iris | none | 80.0 | 79.5 |" in shown("table")
    with pytest.raises(ValueError, match="'most' is not shown of small sets; table, gain and loss"):
        shown("most", "reweighter", "ce")
    (folder / small.name_of(cases[3])).unlink()
    with pytest.raises(LookupError, match=r"iris-none-seed3.json is missing in .*; make it by: "):
        pages.SmallSets(tmp_path).shown("table")
