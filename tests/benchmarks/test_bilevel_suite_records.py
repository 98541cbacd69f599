"""Records, table and page of the stochastic bilevel methods."""

from __future__ import annotations

import importlib
import json

import pytest


@pytest.fixture
def task(benchmark_modules):
    return lambda name: importlib.import_module(f"bilevel_tasks.{name}")


@pytest.fixture
def suite(benchmark_modules, monkeypatch):
    """The command, without the libraries of others."""
    module = importlib.import_module("bilevel_suite")
    own = {"metaweight": module.LIBRARIES["metaweight"]}
    monkeypatch.setattr(module, "LIBRARIES", own)
    return module


def test_it_leaves_a_record_a_run_and_goes_on(suite, forked, tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path), "--problem", "quadratic", "--method", "SOBA"]
    words += ["--calls", "50", "--seeds", "2"]
    (tmp_path / "quadratic").mkdir()
    (tmp_path / "quadratic" / "minimum.json").write_text('{"minimum": 0.5}')
    assert suite.main(words) == 0
    printed = capsys.readouterr().out
    tuned = json.loads((tmp_path / "quadratic/metaweight-SOBA-calls50-tuning.json").read_text())
    assert len(tuned["tried"]) == 6
    ended = [each for each in tuned["tried"] if each["suboptimality"] is not None]
    best = min(ended, key=lambda each: each["suboptimality"])
    for seed in (0, 1):
        record = json.loads(
            (tmp_path / f"quadratic/metaweight-SOBA-calls50-seed{seed}.json").read_text()
        )
        assert (record["lower_step"], record["upper_step"]) == (
            best["lower_step"],
            best["upper_step"],
        )
        assert record["curve"]["calls"] == [5 * n for n in range(1, 11)]
        assert record["curve"]["suboptimality"][-1] < record["start"]
        assert record["versions"]["processor"]
    assert "| SOBA | metaweight |" in printed

    def never(*given):
        raise AssertionError("run again")

    monkeypatch.setattr(suite.Worker, "trace", never)
    assert suite.main(words) == 0
    assert capsys.readouterr().out == printed
    with pytest.raises(AssertionError, match="run again"):
        suite.main([*words, "--seeds", "3"])


def test_a_missing_library_is_left_out_with_a_sentence(task, monkeypatch):
    contenders = task("contenders")
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert contenders.missing("metaweight") is None
    assert contenders.missing("JAX") == (
        "JAX is left out: jax and jaxopt not installed (pip install 'metaweight[jax]')."
    )


def record(library, method, last, ms, **more):
    curve = {"calls": [10, 20], "seconds": [1.0, 2.0], "suboptimality": [0.5, last]}
    return {
        "library": library,
        "method": method,
        "lower_step": 0.1,
        "upper_step": 3.0,
        "calls_a_step": 5,
        "start": 10.0,
        "curve": curve,
        "ms_a_step": ms,
        "failed": None,
        **more,
    }


def test_the_table_shows_medians_and_ratios_the_best_first(task):
    ours = [record("metaweight", "SOBA", last, 3.0) for last in (0.2, 0.05, 0.1)]
    theirs = [record("JAX", "SOBA", 1e-14, 0.5)] * 3
    lost = [record("metaweight", "SABA", last, 1.0) for last in (0.3, None, 0.4)]
    failed = [record("metaweight", "AmIGO", 0.3, 1.0, failed="diverges")] * 2
    assert task("tables").table([failed, lost, ours, theirs]).splitlines()[2:] == [
        "| SOBA | JAX | 0.1, 3 | 5 | < 1e-12 | 20 | 2 | 0.5 |  |",
        "| SOBA | metaweight | 0.1, 3 | 5 | 1.0e-01 |  |  | 3 | 6 |",
        "| SABA | metaweight | 0.1, 3 | 5 | 4.0e-01, 1 of 3 diverged |  |  | 1 |  |",
        "| AmIGO | metaweight | 0.1, 3 | 5 | 2 of 2 diverged |  |  | 1 |  |",
    ]


def test_pages_show_what_the_records_say(benchmark_modules, tmp_path):
    pages = importlib.import_module("pages.suite")
    folder = tmp_path / pages.RESULTS.relative_to(pages.ROOT)
    packages = ("python", "torch", "jax", "jaxopt", "boat-torch")
    versions = {"processor": "CPU", **dict.fromkeys(packages, "1")}
    for problem in pages.PROBLEMS:
        (folder / problem).mkdir(parents=True)
        for library, known in pages.LIBRARIES.items():
            for method in known.methods:
                for seed in range(pages.SEEDS):
                    name = pages.file_name(library, method, pages.CALLS, str(seed))
                    found = record(library, method, 0.01, 2.0, versions=versions)
                    (folder / problem / name).write_text(json.dumps(found))
    shown = pages.BilevelSuite(tmp_path).shown
    assert "| Neumann, warm and fresh | metaweight | 0.1, 3 | 5 | 1.0e-02 | 20 |" in shown(
        "table", "cleaning"
    )
    assert shown("machine") == "one thread of CPU, Python 1, torch 1, jax 1, jaxopt 1, boat-torch 1"
    assert shown("calls") == f"{pages.CALLS:,}"
    with pytest.raises(ValueError, match="'best' is not shown of the suite; table, calls and mach"):
        shown("best")
    (folder / f"quadratic/JAX-SABA-calls{pages.CALLS}-seed1.json").unlink()
    with pytest.raises(
        LookupError, match=r"JAX-SABA-calls4000-seed1.json is missing .*--problem quadratic"
    ):
        shown("table", "quadratic")
