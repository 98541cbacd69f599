from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = "imbalanced_cifar.py"
TINY = ("--dataset", "digits", "--steps", "6", "--seeds", "1")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def results(folder: Path) -> list[dict]:
    return [{**run, "seconds": None} for run in summary(folder)["runs"]]


def test_leaves_the_same_summary_table_and_figures_each_time(run_script, tmp_path):
    methods = ["ce+meta", "class-balanced", "focal", "meta-weight-net+meta", "class-aware"]
    asked = [word for name in methods for word in ("--method", name)]
    done = run_script(SCRIPT, *TINY, *asked, "--noise", "0.4", "--out", "here")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "per_class_accuracy.png",
        "summary.json",
        "summary.md",
        "training_curves.png",
        "weight_against_loss_class-aware.png",
        "weight_against_loss_meta-weight-net_meta.png",
        "weight_histogram_class-aware.png",
        "weight_histogram_meta-weight-net_meta.png",
    ]
    record = summary(tmp_path / "here")
    assert record["complete"]
    assert record["arguments"]["corruption"] == {
        "imbalance_factor": 10.0,
        "noise": 0.4,
        "noise_kind": "uniform",
    }
    assert {"python", "torch", "metaweight", "platform", "processor", "threads"} <= set(
        record["versions"]
    )
    assert [run["method"] for run in record["runs"]] == methods
    for run in record["runs"]:
        assert len(run["per_class"]) == 10
        assert run["history"]["steps"][-1] == 6
        assert run["best"] == max(run["history"]["accuracies"])
        assert run["last"] == run["history"]["accuracies"][-1]
    table = (tmp_path / "here" / "summary.md").read_text()
    for name in methods:
        assert f"| {name} |" in table
    # What is printed is the table; progress, with the time left, goes elsewhere.
    assert "| ce+meta |" in done.stdout
    assert "30/30" in done.stderr
    assert "[Validation]" not in done.stderr
    again = run_script(SCRIPT, *TINY, *asked, "--noise", "0.4", "--out", "again")
    assert again.returncode == 0, again.stderr
    assert results(tmp_path / "again") == results(tmp_path / "here")


def test_without_cifar_says_in_one_sentence_what_to_do(run_script, tmp_path):
    done = run_script(SCRIPT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cifar10 was looked for in {tmp_path.resolve() / 'data'}")
    assert "`--dataset digits`" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "invalid choice: 'magic'"),
        (["--method", "ce", "--method", "ce"], "ce was given twice"),
        (["--noise", "1.5"], "1.5 is not a share"),
        (["--imbalance-factor", "0.5"], "0.5 is not a finite factor"),
        (["--imbalance-factor", "nan"], "nan is not a finite factor"),
        (["--steps", "0"], "0 is below 1"),
        (["--seeds", "many"], "'many' is neither a number"),
        (["--seeds", "0"], "0 seeds were asked for"),
        (["--seeds", "1", "1"], "names a seed twice"),
        (["--device", "abacus"], "'abacus' is not a device"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
        (["--method", "ce", "--meta-lr", "0.1"], "none of the methods asked for learns weights"),
        (["--method", "ce", "--focal-gamma", "1"], "focal is not among the methods"),
        (["--dataset", "digits", "--data", "x"], "digits come with scikit-learn"),
    ],
)
def test_refuses_arguments(benchmark_modules, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module("imbalanced_cifar").parse(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_too_strong_a_tail_is_refused_without_traceback(benchmark_modules, capsys, tmp_path):
    script = importlib.import_module("imbalanced_cifar")
    options = script.parse([*TINY, "--imbalance-factor", "5000", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    assert script.run_study(options) == 2
    torch.set_num_threads(threads)
    assert "leaves the rarest class empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(["3"], [0, 1, 2]), (["4", "7"], [4, 7]), (["4,7"], [4, 7]), (["7,"], [7])],
)
def test_seeds_are_a_number_or_a_list(benchmark_modules, given, seeds):
    options = importlib.import_module("imbalanced_cifar").parse(["--seeds", *given])
    assert options.seeds == seeds


def test_cifar_follows_the_published_protocol(benchmark_modules):
    options = importlib.import_module("imbalanced_cifar").parse([])
    assert options.corruption.imbalance_factor == 100
    assert (options.protocol.epochs, options.protocol.milestones) == (100, (0.8, 0.9))
    assert (options.protocol.learning_rate, options.protocol.meta_per_class) == (0.1, 10)
    steps_of = importlib.import_module("study.study").steps_of
    # Classes of 4 990 · 100^(-c/9) samples are 12 379 in all: 124 batches of up to 100.
    assert steps_of(options.protocol, 12_379) == 12_400


def test_splits_are_disjoint_and_only_train_is_noisy(benchmark_modules):
    splits_module = importlib.import_module("study.splits")
    corruption = splits_module.Corruption(10, 0.4)
    source = splits_module.Source("digits", Path("nowhere"))
    splits = source.split(3, 5, corruption)
    parts = [set(part.indices.tolist()) for part in (splits.train, splits.meta, splits.test)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts)
    assert splits.train.wrong_labels.double().mean() == pytest.approx(0.36, abs=0.06)
    assert not splits.meta.wrong_labels.any()
    assert not splits.test.wrong_labels.any()
    assert splits.meta.class_counts().tolist() == [5] * 10
    sizes = torch.bincount(splits.train.clean_labels).sort(descending=True).values
    assert sizes[0] // sizes[-1] == 10
    again = source.split(3, 5, corruption)
    assert torch.equal(again.train.labels, splits.train.labels)
    other = source.split(4, 5, corruption)
    assert not torch.equal(other.train.indices, splits.train.indices)


def test_class_balanced_counts_the_labels_as_given(benchmark_modules):
    batch_loss = importlib.import_module("study.problems").batch_loss
    protocol = importlib.import_module("study.protocols").DIGITS_IMBALANCE
    labelled = importlib.import_module("metaweight.data").LabelledTensors
    noisy, clean = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    data = labelled(torch.zeros(4, 2), noisy, clean, torch.arange(4), 2)
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    value = batch_loss("class-balanced", data, protocol, "cpu")(logits, torch.tensor([0, 1]))
    # Sizes 3 and 1 give weights near 1 : 3, that is 0.5 and 1.5 where the mean is 1.
    losses = np.log1p(np.exp(-2.0)), np.log(2.0)
    assert float(value) == pytest.approx((0.5 * losses[0] + 1.5 * losses[1]) / 2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "class-balanced+meta",
        pytest.param("meta-weight-net", marks=pytest.mark.slow),
        "class-aware+meta",
    ],
)
def test_runs_on_cifar_in_the_official_layout(
    benchmark_modules, tiny_cifar10, capsys, monkeypatch, method
):
    monkeypatch.chdir(tiny_cifar10)
    script = importlib.import_module("imbalanced_cifar")
    arguments = f"--data . --method {method} --imbalance-factor 2 --meta-per-class 2 --steps 2"
    options = script.parse([*arguments.split(), "--seeds", "1", "--device", "cpu", "--out", "out"])
    assert script.run_study(options) == 0
    record = summary(tiny_cifar10 / "out")
    (run,) = record["runs"]
    # Ten of twelve samples a class are left after the meta split; the tail falls from 10 to 5.
    assert (run["class_counts"][0], run["class_counts"][-1]) == (10, 5)
    assert run["history"]["steps"] == [1, 2]
    assert f"| {method} |" in capsys.readouterr().out
