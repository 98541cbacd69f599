"""The command of accuracy from its arguments to its files, as a user runs it."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = "accuracy.py"
TINY = ("--steps", "6", "--seeds", "1")
TAILED = ("--noise", "0.4", "--imbalance-factor", "10")


def methods(*names: str) -> list[str]:
    return [word for name in names for word in ("--method", name)]


def records(folder: Path) -> dict[str, dict]:
    found = {path.stem: json.loads(path.read_text()) for path in folder.rglob("*.json")}
    return {name: found[name] for name in sorted(found)}


def results(folder: Path) -> dict[str, dict]:
    timed = ("seconds", "peak_mib")
    return {
        name: {k: v for k, v in record.items() if k not in timed}
        for name, record in records(folder).items()
    }


def test_leaves_records_a_table_and_figures(run_script, tmp_path):
    names = ["ce+meta", "class-balanced", "meta-weight-net+meta", "class-aware"]
    done = run_script(SCRIPT, *TINY, *TAILED, *methods(*names), "--out", "here")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "here" / "digits-if10-uniform40-digits-net-clean5-6steps"
    assert {path.name for path in folder.iterdir()} == {
        "ce+meta-seed0.json",
        "class-balanced-seed0.json",
        "class-aware-seed0.json",
        "meta-weight-net+meta-seed0.json",
        "summary.md",
        "per_class_accuracy.png",
        "training_curves.png",
        "weight_against_loss_class-aware.png",
        "weight_against_loss_meta-weight-net_meta.png",
        "weight_histogram_class-aware.png",
        "weight_histogram_meta-weight-net_meta.png",
    }
    for record in records(folder).values():
        assert record["curve"][-1] == [6, record["last"]]
        assert record["best"] == max(accuracy for _, accuracy in record["curve"])
        assert len(record["per_class"]) == 10
        assert {"python", "torch", "metaweight", "processor"} <= record["versions"].keys()
        assert record["peak_mib"] > 50
        assert 0 < record["seconds"]["evaluating"] < record["seconds"]["all"]
        assert record["detection"]["loss"].keys() == {"auc", "precision"}
    page = (folder / "summary.md").read_text()
    for name in names:
        assert f"| {name} |" in page
        assert f"| {name} |" in done.stdout
    assert "AUC of 1 − weight" in page
    assert "100% of all" in done.stderr
    # A second start finds everything done, and a record is not read for another question.
    again = run_script(SCRIPT, *TINY, *TAILED, *methods(*names), "--out", "here")
    assert again.returncode == 0
    assert again.stdout == done.stdout
    other = run_script(SCRIPT, *TINY, *TAILED, *methods("ce+meta"), "--lr", "0.1", "--out", "here")
    assert other.returncode == 2
    assert "learning_rate=0.0025, and 0.1 was asked for; use another --out" in other.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ce", marks=pytest.mark.slow),
        pytest.param("mixup", marks=pytest.mark.slow),
        pytest.param("prune", marks=pytest.mark.slow),
        pytest.param("ensemble-resample", marks=pytest.mark.slow),
        pytest.param("ocl", marks=pytest.mark.slow),
        pytest.param("elr", marks=pytest.mark.slow),
        pytest.param("co-teaching", marks=pytest.mark.slow),
        pytest.param("ldam-drw", marks=pytest.mark.slow),
        pytest.param("fine-tune", marks=pytest.mark.slow),
        "class-aware+meta/every-4",
    ],
)
def test_a_run_that_is_stopped_and_gone_on_with_ends_the_same(
    benchmark_modules, tmp_path, monkeypatch, name
):
    asked = ["--steps", "9", "--seeds", "1", "--noise", "0.4", "--evaluations", "3"]
    asked += methods(name)
    study = importlib.import_module("study.study")
    assert study.main([*asked, "--out", str(tmp_path / "whole")], "", {}) == 0
    sweep = importlib.import_module("study.sweep")
    ended: list[int] = []

    class Stops(sweep.Share):
        def iteration_end(self, engine):
            if engine.global_step in (2, 5, 8) and engine.global_step not in ended:
                ended.append(engine.global_step)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sweep, "Share", Stops)
    stopped = [*asked, "--out", str(tmp_path / "stopped")]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            study.main(stopped, "", {})
    assert study.main(stopped, "", {}) == 0
    assert ended == [2, 5, 8]
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    assert not [path for path in (tmp_path / "stopped").rglob("*") if path.suffix == ".lock"]


def test_minutes_end_a_sweep_that_can_be_gone_on_with(run_script, tmp_path):
    asked = [SCRIPT, *TINY, *methods("ce", "gce"), "--out", "here"]
    done = run_script(*asked, "--minutes", "0.00001")
    assert done.returncode == 3
    assert "the same command goes on" in done.stdout
    assert not records(tmp_path)
    assert run_script(*asked).returncode == 0
    assert [*records(tmp_path)] == ["ce-seed0", "gce-seed0"]


def test_a_run_that_another_process_has_is_left_to_it(benchmark_modules, tmp_path):
    asked = [*TINY, *methods("ce"), "--out", str(tmp_path)]
    options = importlib.import_module("study.options").parse(asked, "", {})
    sweep = importlib.import_module("study.sweep")
    settings = importlib.import_module("study.settings")
    store = importlib.import_module("study.store").Store(options.folder)
    runs, splits = sweep.all_runs(options, settings.Source(options.setting, options.files))
    with store.claim(runs[0]) as mine:
        assert mine
        assert not sweep.sweep(options, runs, splits)
    assert sweep.sweep(options, runs, splits)


def test_a_process_that_helps_has_no_helpers(benchmark_modules):
    parse = importlib.import_module("study.options").parse
    sweep = importlib.import_module("study.sweep")
    options = parse([*TINY, "--jobs", "3"], "", {})
    assert options.command[1:] == [str(FOLDER / SCRIPT), *TINY, "--jobs", "3", "--helps"]
    helping = parse([*TINY, "--jobs", "3", "--helps"], "", {})
    with sweep._helpers(helping, 9) as helpers:
        assert helpers == []


@pytest.mark.slow
def test_processes_share_the_runs(run_script, tmp_path):
    asked = [*TINY, *methods("ce", "gce", "sce"), "--jobs", "2", "--out", str(tmp_path / "here")]
    done = run_script(SCRIPT, *asked)
    assert done.returncode == 0, done.stderr
    assert len(records(tmp_path)) == 3


@pytest.mark.slow
def test_cheaper_hypergradients_are_compared(run_script, tmp_path):
    names = ["meta-weight-net", "meta-weight-net/last-block", "meta-weight-net/every-4"]
    names += ["meta-weight-net/adaptive", "meta-weight-net/sampled-layers+meta"]
    done = run_script(SCRIPT, "--steps", "8", "--noise", "0.4", "--seeds", "1", *methods(*names))
    assert done.returncode == 0, done.stderr
    steps = {r["asked"]["method"]: r["upper_steps"] for r in records(tmp_path).values()}
    assert steps == {
        "meta-weight-net": 8,
        "meta-weight-net/last-block": 8,
        "meta-weight-net/every-4": 2,
        "meta-weight-net/adaptive": 8,
        "meta-weight-net+meta/sampled-layers": 8,
    }
    assert "steps of the weight network" in done.stdout


SEARCHES = ("prune", "ensemble-resample", "ensemble-reweight+meta")
FIXED = ("soft-bootstrapping", "hard-bootstrapping", "gce", "sce", "mixup", "ema", "ocl")
TAIL = ("focal", "logit-adjusted", "drw", "fine-tune")
WEIGHTS = (
    "meta-weight-net+warm-up",
    "class-aware+plain-views+steady+exponential/one-sided",
    "class-aware+late",
)
OWN = ("elr", "ldam-drw", "co-teaching")
QUICK = ("class-aware+balanced",)


@pytest.mark.parametrize(
    "names",
    [QUICK, pytest.param((*SEARCHES, *OWN, *FIXED, *TAIL, *WEIGHTS), marks=pytest.mark.slow)],
)
def test_methods_train_and_searches_say_what_they_rejected(run_script, tmp_path, names):
    asked = ["--steps", "31", "--seeds", "1", "--noise", "0.4", "--lr", "0.05", *methods(*names)]
    done = run_script(SCRIPT, *asked, "--evaluations", "1")
    assert done.returncode == 0, done.stderr
    found = {record["asked"]["method"]: record for record in records(tmp_path).values()}
    searches = {*SEARCHES} & {*names}
    assert {name for name, record in found.items() if "rejected" in record} == searches
    for name, record in found.items():
        # Chance is 10 %; the loss is smaller on right labels after these few steps.
        assert record["last"] > 30, name
        assert record["detection"]["loss"]["auc"] > 0.7, name
        assert [step for step, _ in record["curve"]] == [31]
    for name in searches:
        # 36 % of the labels are wrong: rejecting at random would have that precision.
        assert found[name]["rejected"]["precision"] > 0.5, name
        assert 0 < found[name]["rejected"]["recall"] <= 1
    for name in {"prune"} & searches:
        scores = {"cleanlab self_confidence", "out-of-fold margin"}
        assert scores <= found[name]["detection"].keys()
    assert ("precision of rejected" in done.stdout) == bool(searches)


def test_without_noise_there_is_nothing_to_detect(run_script, tmp_path):
    assert run_script(SCRIPT, *TINY, *methods("class-aware")).returncode == 0
    (record,) = records(tmp_path).values()
    assert record["detection"] == {}
    assert not list(tmp_path.rglob("weight_histogram*"))


@pytest.mark.parametrize(
    ("name", "script"), [("cifar10", "imbalanced_cifar.py"), ("cifar100", SCRIPT)]
)
def test_without_cifar_says_in_one_sentence_what_to_do(run_script, tmp_path, name, script):
    done = run_script(script, "--dataset", name, "--data", "empty")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name} was looked for in {tmp_path.resolve() / 'empty'}")
    assert "`--dataset digits`" in line
    assert not (tmp_path / "results").exists()


@pytest.fixture
def photos(tmp_path):
    """Three classes of 20 photos, every fifth in the wrong folder, and four checked ones."""
    colours = np.random.default_rng(0)
    for part, number in (("photos", 20), ("checked", 4)):
        for place in range(3 * number):
            shade = colours.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            shade[:, :, place % 3] += 180
            wrong = part == "photos" and place % 5 == 0
            folder = tmp_path / part / "abc"[(place + wrong) % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shade).save(folder / f"{'abc'[place % 3]}{place}.png")
    return ("--dataset", "images", "--data", "photos", "--clean", "checked", "--size", "16")


def test_a_folder_of_images_is_trained_and_its_suspicious_labels_are_listed(
    run_script, tmp_path, photos
):
    asked = [*photos, *methods("ce+meta"), "--steps", "20", "--seeds", "1", "--lr", "0.02"]
    done = run_script(SCRIPT, *asked, "--batch-size", "16", "--suspicious", "6", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    table = (folder / "ce+meta-seed0-suspicious.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["rank"] for row in rows] == list("123456")
    # Twelve of 60 photos are in the wrong folder, and colours are easy to tell apart.
    for row in rows:
        path = Path(row["sample"])
        assert path.is_file()
        assert row["given label"] == path.parent.name
        assert row["suggested label"] == path.name[0] != path.parent.name
    with Image.open(folder / "ce+meta-seed0-suspicious.png") as picture:
        assert picture.width > picture.height
    (record,) = records(tmp_path).values()
    # One of four checked ones of each class is measured on.
    assert record["samples"] == {"train": 60, "meta": 9, "test": 3}
    assert record["last"] == 100


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "photos"), "photos"),
        (lambda root: (root / "photos" / "a" / "x.png").write_bytes(b"\x89PNG"), "x.png"),
        (lambda root: shutil.rmtree(root / "checked" / "b"), "b"),
        (lambda root: (root / "checked" / "b").rename(root / "checked" / "other"), "other"),
        (lambda root: [p.unlink() for p in (root / "checked" / "c").iterdir()], "c"),
    ],
)
def test_images_that_cannot_be_used_are_one_sentence(run_script, tmp_path, photos, spoil, message):
    spoil(tmp_path)
    done = run_script(SCRIPT, *photos, "--steps", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(7) % 10, "7"),
        ((np.arange(120) + 1) % 10, "order"),
        (None, "does not exist"),
    ],
)
def test_human_labels_that_do_not_fit_are_one_sentence(
    benchmark_modules, tiny_cifar10, capsys, monkeypatch, labels, message
):
    monkeypatch.chdir(tiny_cifar10)
    if labels is not None:
        np.savez("human.npz", clean_label=labels, worse_label=labels)
    study = importlib.import_module("study.study")
    asked = ["--dataset", "cifar10", "--data", ".", "--human-labels", "human.npz"]
    assert study.main([*asked, "--steps", "2", "--meta-per-class", "2"], "", {}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_human_labels_are_trained_on_and_their_errors_known(
    benchmark_modules, tiny_cifar10, monkeypatch
):
    monkeypatch.chdir(tiny_cifar10)
    clean = np.tile(np.arange(10), 12)
    worse = np.where(np.arange(120) % 3 == 0, (clean + 1) % 10, clean)
    np.savez("human.npz", clean_label=clean, worse_label=worse)
    study = importlib.import_module("study.study")
    asked = ["--dataset", "cifar10", "--data", ".", "--human-labels", "human.npz", "--steps", "2"]
    rest = ["--meta-per-class", "2", "--seeds", "1", *methods("ce"), "--threads", "1"]
    assert study.main([*asked, *rest, "--precision", "fp32", "--device", "cpu"], "", {}) == 0
    (record,) = records(tiny_cifar10 / "results").values()
    assert record["asked"]["setting"]["human_labels"] == "worst"
    assert record["samples"] == {"train": 100, "meta": 20, "test": 20}
    assert record["detection"]["loss"].keys() == {"auc", "precision"}


def test_too_strong_a_tail_is_refused_without_traceback(run_script):
    done = run_script(SCRIPT, *TINY, "--imbalance-factor", "5000")
    assert done.returncode == 2
    assert "leaves the rarest class empty" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["class-balanced+meta", "prune", "ldam-drw", "class-aware+meta"])
def test_runs_on_cifar_in_the_official_layout(
    benchmark_modules, tiny_cifar10, capsys, monkeypatch, method
):
    monkeypatch.chdir(tiny_cifar10)
    study = importlib.import_module("study.study")
    asked = "--data . --imbalance-factor 2 --meta-per-class 2 --steps 3 --batch-size 20"
    rest = ["--seeds", "1", "--device", "cpu", "--precision", "fp32", *methods(method)]
    defaults = importlib.import_module("imbalanced_cifar").DEFAULTS
    assert study.main([*asked.split(), *rest], "", defaults) == 0
    (record,) = records(tiny_cifar10 / "results").values()
    # Ten of twelve samples a class are left after the clean split; the tail falls from 10 to 5.
    assert (record["class_counts"][0], record["class_counts"][-1]) == (10, 5)
    assert record["curve"][-1][0] == 3
    assert f"| {method} |" in capsys.readouterr().out
