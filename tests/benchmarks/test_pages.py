"""README and documentation show what the committed records say, and nothing else."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(benchmark_modules):
    return lambda name: importlib.import_module(f"pages.{name}")


@pytest.fixture
def copied(page, tmp_path):
    """A copy of pages, figures and records."""
    for name in page("render").PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("benchmarks/results", "docs/images"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_pages_are_what_the_records_give(page):
    render = page("render")
    pages = render.Pages()
    for name in render.PAGES:
        text = (ROOT / name).read_text()
        assert pages.rendered(text) == text, f"{name} differs: run `make results`"


def test_every_page_that_shows_records_is_filled_in(page):
    """A page that is not keeps the numbers of records that are long gone."""
    everything = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
    everything += (ROOT / "docs").rglob("*.md")
    shows = {str(p.relative_to(ROOT)) for p in everything if "<!-- end -->" in p.read_text()}
    assert len(shows) >= 8
    assert shows <= set(page("render").PAGES)


def test_figures_are_drawn_from_the_records(page):
    figures = page("figures")
    for name, drawing in figures.FIGURES.items():
        marked = figures.mark_of(ROOT / figures.FOLDER / name)
        assert marked == figures.mark(drawing.records(ROOT)), f"{name} is old: run `make results`"


def test_a_missing_run_is_named_with_its_command(page, copied):
    claims, render, sweeps = page("claims"), page("render"), page("sweeps")
    sweep = claims.SWEEPS["digits-tailed-noise"]
    folder = sweep.options().folder
    (copied / folder / "class-aware+meta-seed3.json").unlink()
    with pytest.raises(sweeps.MissingRunError) as error:
        render.write_pages(copied)
    assert str(error.value) == (
        f"{folder}/class-aware+meta-seed3.json is missing; make it by: "
        "python benchmarks/accuracy.py --dataset digits --imbalance-factor 10 --noise 0.4 "
        "--seeds 5 --evaluations 20 --method ce+meta --method class-balanced+meta "
        "--method focal+meta --method meta-weight-net+meta --method class-aware+meta "
        "--out benchmarks/results/accuracy/tuned"
    )


def test_other_records_give_other_pages_and_figures(page, copied):
    claims, render, figures = page("claims"), page("render"), page("figures")
    assert render.write_pages(copied) == []
    assert figures.write_figures(copied) == []
    folder = copied / claims.SWEEPS["digits-tailed-noise"].options().folder
    path = folder / "class-aware+meta-seed0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"last": record["last"] - 50}))
    changed = render.write_pages(copied)
    assert "README.md" in changed
    assert "docs/results.md" in changed
    assert figures.write_figures(copied) == [f"docs/images/{name}" for name in figures.FIGURES]
    assert render.write_pages(copied) == []


def test_marks_are_filled_in(page, monkeypatch):
    render = page("render")
    runs = {"a": [{"last": 80.0}, {"last": 82.0}], "b": [{"last": 70.0}, {"last": 74.4}]}
    monkeypatch.setattr(render.Pages, "records", lambda self, sweep: {"s": runs}[sweep])
    text = (
        "<!-- mean s a --><!-- end -->, <!-- spread s b -->?<!-- end -->, "
        "<!-- gain s a b -->\n\n<!-- end -->, <!-- gain s a b 1 -->9<!-- end -->"
    )
    filled = render.Pages().rendered(text)
    assert filled == (
        "<!-- mean s a -->81.0<!-- end -->, <!-- spread s b -->72.2 ± 3.1<!-- end -->, "
        "<!-- gain s a b -->9<!-- end -->, <!-- gain s a b 1 -->8.8<!-- end -->"
    )
    with pytest.raises(ValueError, match="'magic'; known are table, command, mean"):
        render.Pages().rendered("<!-- magic x --><!-- end -->")


def test_the_best_of_a_column_is_marked(page):
    values = page("values")
    table = values.Table({"A": "a", "B": "b"}, [values.Column("accuracy", "s")], best=True)
    runs = {"a": [{"last": 80.0}, {"last": 82.0}], "b": [{"last": 90.0}]}
    assert table.text(lambda name: runs).splitlines() == [
        "| method | accuracy |",
        "|:--|--:|",
        "| A | 81.0 ± 1.4 |",
        "| B | **90.0** |",
    ]


def test_an_overview_names_the_best_of_each_kind(page):
    runs = {
        "ce": [{"last": 99.0}],
        "ce+meta": [{"last": 50.0}, {"last": 52.0}],
        "elr+meta": [{"last": 60.0}, {"last": 62.0}],
        "gce+meta": [{"last": 70.0}, {"last": 40.0}],
        "meta-weight-net-normalised+meta/one-sided": [{"last": 57.0}],
        "class-aware+meta/one-sided": [{"last": 58.0}],
    }
    assert page("overview").overview(lambda name: runs, ["s"], ["noise, 40 %"]).splitlines() == [
        "|  | cross-entropy | best without learned weights | best with learned weights |",
        "|:--|--:|--:|--:|",
        "| noise, 40 % | 51.0 ± 1.4 | ELR 61.0 ± 1.4 | class-aware weights 58.0 |",
    ]


def test_every_method_of_an_overview_has_a_title(page):
    known = page("overview").TITLES
    for name, sweep in page("claims").SWEEPS.items():
        if name.startswith("cifar-") and not name.endswith("-many"):
            assert {*sweep.methods} <= {*known, "ce", "ce+meta"}, name


def test_a_missing_record_of_data_weights_is_named_with_its_command(page, copied):
    weights, sweeps = page("data_weights"), page("sweeps")
    (copied / "benchmarks/results/data_weighting/steps200-seed1.json").unlink()
    with pytest.raises(sweeps.MissingRunError, match=r"steps200-seed1.json is missing .* make it"):
        weights.DataWeights(copied).shown("table")
    with pytest.raises(ValueError, match="'gain' is not shown of data weights"):
        weights.DataWeights(copied).shown("gain")


def test_scores_of_wrong_labels_stand_side_by_side(page, monkeypatch):
    render, detection = page("render"), page("detection")
    scores = {"loss": {"auc": 0.9, "precision": 0.5}, "weight": {"auc": 0.4, "precision": 0.25}}
    runs = {"a": [{"detection": scores}, {"detection": {**scores, "loss": scores["weight"]}}]}
    monkeypatch.setattr(render.Pages, "records", lambda self, sweep: {"s": runs, "t": runs}[sweep])
    monkeypatch.setattr(detection, "SCORES", {"loss": ("a", "loss"), "1 − w": ("a", "weight")})
    filled = render.Pages().rendered("<!-- detection s=here t=there -->\n<!-- end -->")
    assert filled.splitlines()[1:-1] == [
        "| score | AUC, here | precision, here | AUC, there | precision, there |",
        "|:--|--:|--:|--:|--:|",
        "| loss | 0.650 ± 0.354 | 37.5 ± 17.7 | 0.650 ± 0.354 | 37.5 ± 17.7 |",
        "| 1 − w | 0.400 ± 0.000 | 25.0 ± 0.0 | 0.400 ± 0.000 | 25.0 ± 0.0 |",
    ]


def test_sweeps_are_chosen_by_name_or_by_how_they_start(benchmark_modules, capsys):
    script = importlib.import_module("claims")
    assert script.chosen("cifar-uniform") == ["cifar-uniform"]
    assert script.chosen("digits-noise") == ["digits-noise"]
    assert {"digits-tailed", "digits-noise"} < set(script.chosen("digits"))
    with pytest.raises(SystemExit):
        script.main(["--run", "--only", "cifar-unifrom"])
    assert "no sweep starts with 'cifar-unifrom'; digits-tailed-noise" in capsys.readouterr().err


def test_tables_ask_for_methods_that_their_sweeps_have(page):
    sweeps, tables = page("claims").SWEEPS, page("tables").TABLES
    for name, table in tables.items():
        assert table.rows, name
        for column in table.columns:
            asked = {column.methods.get(method, method) for method in table.rows.values()}
            assert asked <= set(sweeps[column.sweep].methods), name
