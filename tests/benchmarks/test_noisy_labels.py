from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

SCRIPT = "noisy_labels.py"
TINY = ("--steps", "6", "--seeds", "1")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_cheaper_hypergradients_are_compared(run_script, tmp_path):
    names = ["meta-weight-net", "meta-weight-net/last-block", "meta-weight-net/every-4"]
    names += ["meta-weight-net/adaptive", "meta-weight-net/sampled-layers+meta"]
    methods = [part for name in names for part in ("--method", name)]
    done = run_script(SCRIPT, "--steps", "8", "--seeds", "1", *methods, "--out", "here")
    assert done.returncode == 0, done.stderr
    runs = {run["method"]: run for run in summary(tmp_path / "here")["runs"]}
    assert {name: run["upper_steps"] for name, run in runs.items()} == dict(
        zip(names, [8, 8, 2, 8, 8], strict=True)
    )
    assert "steps of the weight network" in (tmp_path / "here" / "summary.md").read_text()
    assert (tmp_path / "here" / "weight_histogram_meta-weight-net_every-4.png").exists()


def test_leaves_summary_table_and_figures(run_script, tmp_path):
    done = run_script(SCRIPT, *TINY, "--noise-kind", "flip", "--out", "here")
    assert done.returncode == 0, done.stderr
    learned = ["meta-weight-net", "meta-weight-net-normalised", "class-aware"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "per_class_accuracy.png",
        "summary.json",
        "summary.md",
        "training_curves.png",
        *(f"weight_against_loss_{name}.png" for name in learned),
        *(f"weight_histogram_{name}.png" for name in learned),
    }
    runs = {run["method"]: run for run in summary(tmp_path / "here")["runs"]}
    assert list(runs) == ["ce", "ce+meta", *learned]
    for name in learned:
        assert 0 <= runs[name]["weight_auc"] <= 1
        # ⌊1 197 · 0.4⌋ of 1 197 labels are flipped, each to a wrong class.
        assert runs[name]["wrong_labels"] == pytest.approx(478 / 1197)
    assert "weight_auc" not in runs["ce"]
    assert "AUC of 1 − weight" in (tmp_path / "here" / "summary.md").read_text()


def test_without_cifar_says_in_one_sentence_what_to_do(run_script, tmp_path):
    done = run_script(SCRIPT, "--dataset", "cifar100", "--data", "empty")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cifar100 was looked for in {tmp_path.resolve() / 'empty'}")


def test_without_noise_there_is_nothing_to_detect(benchmark_modules, tmp_path):
    script = importlib.import_module("noisy_labels")
    asked = [*TINY, "--noise", "0", "--method", "class-aware", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    assert script.run_study(script.parse(asked)) == 0
    torch.set_num_threads(threads)
    (run,) = summary(tmp_path)["runs"]
    assert "weight_auc" not in run
    assert not list(tmp_path.glob("weight_histogram*"))


@pytest.mark.parametrize("kind", ["nonsense", "flip_two"])
def test_refuses_other_noise(benchmark_modules, capsys, kind):
    with pytest.raises(SystemExit):
        importlib.import_module("noisy_labels").parse(["--noise-kind", kind])
    assert "invalid choice" in capsys.readouterr().err


def test_cifar_follows_the_published_protocol(benchmark_modules):
    parse = importlib.import_module("noisy_labels").parse
    for dataset, per_class in (("cifar10", 100), ("cifar100", 10)):
        protocol = parse(["--dataset", dataset]).protocol
        assert (protocol.epochs, protocol.meta_per_class) == (60, per_class)
        assert (protocol.meta_learning_rate, protocol.meta_weight_decay) == (1e-3, 1e-4)
        # Divided by 10 after epochs 40 and 50.
        assert [share * 60 for share in protocol.milestones] == [40, 50]
        assert not protocol.normalise


def test_detection_is_the_area_under_the_curve(benchmark_modules):
    judgement = importlib.import_module("study.training").Judgement
    to_detection = importlib.import_module("study.summary")._detection
    wrong = torch.tensor([True, False, True, False])
    weights = torch.tensor([0.1, 0.9, 0.6, 0.5])
    found = to_detection(judgement(torch.tensor([3.0, 0.1, 2.0, 0.2]), weights, wrong))
    # Of the four pairs (wrong, right) one has its weights the wrong way round.
    assert found["weight_auc"] == pytest.approx(0.75)
    assert found["loss_auc"] == 1
    assert math.isclose(found["mean_weight_wrong"], 0.35, rel_tol=1e-6)


def test_every_remedy_trains_and_judges_say_what_they_rejected(run_script, tmp_path):
    names = [
        "soft-bootstrapping",
        "hard-bootstrapping",
        "gce",
        "sce",
        "mixup",
        "ema",
        "ocl",
        "prune",
        "ensemble-resample",
        "ensemble-reweight+meta",
    ]
    asked = [word for name in names for word in ("--method", name)]
    done = run_script(SCRIPT, "--steps", "31", "--seeds", "1", "--lr", "0.05", *asked, "--out", "a")
    assert done.returncode == 0, done.stderr
    runs = {run["method"]: run for run in summary(tmp_path / "a")["runs"]}
    assert list(runs) == names
    judged = {name for name, run in runs.items() if "precision" in run}
    assert judged == {"prune", "ensemble-resample", "ensemble-reweight+meta"}
    for name, run in runs.items():
        # Chance is 10 %; the loss is smaller on right labels after these few steps.
        assert run["last"] > 30, name
        assert run["loss_auc"] > 0.7, name
        assert run["history"]["steps"][-1] == 31
    for name in judged:
        # 36 % of the labels are wrong: rejecting at random would have that precision.
        assert runs[name]["precision"] > 0.5, name
        assert 0 < runs[name]["recall"] <= 1
    assert "precision of rejected" in (tmp_path / "a" / "summary.md").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "mixup",
        pytest.param("class-aware", marks=pytest.mark.slow),
        pytest.param("prune", marks=pytest.mark.slow),
        pytest.param("ensemble-resample", marks=pytest.mark.slow),
    ],
)
def test_remedies_are_the_same_for_the_same_seed(run_script, tmp_path, name):
    for out in ("first", "second"):
        assert run_script(SCRIPT, *TINY, "--method", name, "--out", out).returncode == 0
    first, second = (summary(tmp_path / out)["runs"] for out in ("first", "second"))
    for run in (*first, *second):
        del run["seconds"]
    assert first == second


def test_precision_and_recall(benchmark_modules):
    measure = importlib.import_module("study.training").precision_and_recall
    rejected = torch.tensor([True, True, True, False, False])
    wrong = torch.tensor([True, False, False, True, False])
    assert measure(rejected, wrong) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    nobody = torch.zeros(5, dtype=torch.bool)
    assert measure(nobody, nobody) == (0, 0)


def test_options_change_the_protocol(benchmark_modules, capsys):
    parse = importlib.import_module("noisy_labels").parse
    asked = ["--dataset", "cifar10", "--network", "resnet18", "--epochs", "20"]
    protocol = parse([*asked, "--batch-size", "128"]).protocol
    assert (protocol.network, protocol.epochs, protocol.batch_size) == ("resnet18", 20, 128)
    assert parse(["--epochs", "3"]).protocol.steps is None
    protocol = parse(["--per-class", "7", "--constant-lr"]).protocol
    assert (protocol.per_class, protocol.milestones) == (7, ())
    for wrong, message in (
        (["--network", "resnet18"], "digits have a network of their own"),
        (["--epochs", "2", "--steps", "5"], "--steps already says how long to train"),
    ):
        with pytest.raises(SystemExit):
            parse(wrong)
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            "--method prune --network resnet18 --per-class 5 --constant-lr",
            marks=pytest.mark.slow,
        ),
        "--method ensemble-reweight --method mixup --method ocl --method ema",
    ],
)
def test_remedies_run_on_cifar_in_the_official_layout(
    benchmark_modules, tiny_cifar10, monkeypatch, arguments
):
    monkeypatch.chdir(tiny_cifar10)
    script = importlib.import_module("noisy_labels")
    asked = f"--dataset cifar10 --data . --meta-per-class 2 --steps 3 --batch-size 20 {arguments}"
    rest = ["--seeds", "1", "--device", "cpu", "--threads", "1", "--out", "out"]
    assert script.run_study(script.parse([*asked.split(), *rest])) == 0
    runs = summary(tiny_cifar10 / "out")["runs"]
    assert [run["method"] for run in runs] == re.findall("--method (\\S+)", arguments)
    if "--per-class" in arguments:
        assert sum(runs[0]["class_counts"]) == 50
    assert all(run["history"]["steps"][-1] == 3 for run in runs)
