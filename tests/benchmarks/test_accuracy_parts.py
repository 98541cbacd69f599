"""The parts of the study of accuracy against answers found another way."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metaweight.data import LabelledTensors, TensorLoader


@pytest.fixture
def part(benchmark_modules):
    return lambda name: importlib.import_module(f"study.{name}")


def test_splits_are_disjoint_and_only_train_is_noisy(part):
    settings = part("settings")
    setting = settings.Setting("digits", "digits-net", 10, 0.4, meta_per_class=5)
    source = settings.Source(setting, settings.Files(Path("nowhere")))
    splits = source.split(3)
    parts = [set(p.indices.tolist()) for p in (splits.train, splits.meta, splits.test)]
    assert len(set.union(*parts)) == sum(len(p) for p in parts)
    assert splits.train.wrong_labels.double().mean() == pytest.approx(0.36, abs=0.06)
    assert not splits.meta.wrong_labels.any()
    assert not splits.test.wrong_labels.any()
    assert splits.meta.class_counts().tolist() == [5] * 10
    sizes = torch.bincount(splits.train.clean_labels).sort(descending=True).values
    assert sizes[0] // sizes[-1] == 10
    again = source.split(3)
    assert torch.equal(again.train.labels, splits.train.labels)
    assert not torch.equal(source.split(4).train.indices, splits.train.indices)


def test_tuning_measures_on_training_samples_alone(part):
    settings = part("settings")
    files = settings.Files(Path("nowhere"))
    usual = settings.Setting("digits", "digits-net", noise=0.4)
    test = settings.Source(usual, files).split(100).test
    setting = settings.Setting("digits", "digits-net", noise=0.4, tuning=True)
    splits = settings.Source(setting, files).split(100)
    assert not torch.isin(splits.test.indices, test.indices).any()
    assert not torch.isin(splits.test.indices, splits.train.indices).any()
    assert len(splits.test) == 130
    assert not splits.test.wrong_labels.any()


def test_class_balanced_counts_the_labels_as_given(part):
    fixed = part("fixed")
    noisy, clean = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    data = LabelledTensors(torch.zeros(4, 2), noisy, clean, torch.arange(4), 2)
    run = SimpleNamespace(device="cpu", method=SimpleNamespace(base="class-balanced"))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    problem = fixed.fixed(fixed.Given(run, data, None)).make(
        name="c",
        config=None,
        module=torch.nn.Identity(),
        optimizer=optimizer,
        train_data_loader=TensorLoader(data, 2),
    )
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    value = problem.training_step((logits, torch.tensor([0, 1])))
    # Sizes 3 and 1 give weights near 1 : 3, that is 0.5 and 1.5 where the mean is 1.
    losses = np.log1p(np.exp(-2.0)), np.log(2.0)
    assert float(value) == pytest.approx((0.5 * losses[0] + 1.5 * losses[1]) / 2, rel=1e-3)


def test_detection_is_area_and_precision_at_the_true_number(part):
    detection = part("detection")
    wrong = torch.tensor([True, False, True, False])
    scores = {"weight": -torch.tensor([0.1, 0.9, 0.6, 0.5]), "nan": torch.full((4,), torch.nan)}
    found = detection.detection(scores, wrong)
    # Of the four pairs (wrong, right) one has its weights the wrong way round.
    assert found == {"weight": {"auc": 0.75, "precision": 0.5}}
    assert detection.detection(scores, torch.zeros(4, dtype=torch.bool)) == {}


def test_suspicions_are_loss_and_margin(part):
    outputs, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 2])
    found = part("detection").suspicions(outputs, labels)
    assert found["margin"].tolist() == [-1.0, 3.0]
    expected = -np.log(np.exp([2.0, 0.0]) / np.exp(outputs.double().numpy()).sum(1))
    assert found["loss"].numpy() == pytest.approx(expected, rel=1e-6)


def test_a_run_whose_weights_are_not_finite_has_no_histogram(part):
    weights = torch.tensor([1.0, torch.nan])
    assert part("training")._histogram(weights, torch.tensor([True, False])) == {}
    functions = {"losses": [0.0, 1.0], "functions": {"1": [[0.5, 0.5]]}, "groups": [0, 0]}
    record = {
        "asked": {"seed": 0, "setting": {"imbalance_factor": 1.0}},
        "curve": [[1, 10.0]],
        "per_class": [10.0, 10.0],
        "class_counts": [1, 1],
        "weights": functions,
    }
    names = [name for name, _ in part("figures").figures({"class-aware": [record]})]
    assert "weight_against_loss_class-aware.png" in names
    assert "weight_histogram_class-aware.png" not in names


def test_precision_and_recall(part):
    measure = part("detection").precision_and_recall
    rejected = torch.tensor([True, True, True, False, False])
    wrong = torch.tensor([True, False, False, True, False])
    assert measure(rejected, wrong) == {"precision": pytest.approx(1 / 3), "recall": 0.5}
    nobody = torch.zeros(5, dtype=torch.bool)
    assert measure(nobody, nobody) == {"precision": 0, "recall": 0}


def test_evaluations_take_their_share_of_the_time_and_the_last_one_is_never_left_out(part):
    evaluations = part("evaluation").Evaluations(1000, None)
    assert evaluations.every == 10
    evaluations._before = 100.0, 90.0
    evaluations.evaluating, evaluations._expected = 2.9, 1.0
    # 2.9 s and two more of 1 s are within 5 % of 100 s; after this one they no longer are.
    assert evaluations.is_due(10)
    evaluations.add(10, torch.ones(2), torch.ones(2), 1.0)
    assert not evaluations.is_due(20)
    assert evaluations.is_due(1000)
    assert part("evaluation").Evaluations(1000, 3).every == 334


def test_batches_of_one_loader_then_of_another(part):
    def loaders():
        one = LabelledTensors(torch.arange(6.0), torch.zeros(6, dtype=torch.int64))
        other = LabelledTensors(torch.arange(10.0, 14.0), torch.zeros(4, dtype=torch.int64))
        first, second = TensorLoader(one, 2, seed=1), TensorLoader(other, 2, seed=2)
        return part("training_parts").TwoPhaseLoader(first, 4, second)

    def stream(loader):
        while True:
            yield from loader

    whole = stream(loaders())
    values = [next(whole)[0] for _ in range(8)]
    assert [bool((v < 10).all()) for v in values] == [True] * 4 + [False] * 4
    for cut in range(8):
        begun = loaders()
        batches = stream(begun)
        for _ in range(cut):
            next(batches)
        resumed = loaders()
        resumed.load_state_dict(begun.state_dict())
        rest = stream(resumed)
        for value in values[cut:]:
            assert torch.equal(next(rest)[0], value)


def test_meta_optimizers_of_the_remedies(part):
    parts, methods = part("training_parts"), part("methods")
    net = torch.nn.Linear(1, 1)

    def run(name, meta_optimizer):
        protocol = SimpleNamespace(
            meta_optimizer=meta_optimizer,
            meta_learning_rate=0.5,
            meta_weight_decay=0.0,
            momentum=0.8,
            weight_decay=0.0,
            meta_schedule=False,
        )
        return SimpleNamespace(protocol=protocol, steps=10, method=methods.Method.of_name(name))

    adam, sgd = (
        parts.meta_optimizer(net, run("class-aware+steady", kind)) for kind in ("adam", "sgd")
    )
    assert adam.defaults["betas"] == (pytest.approx(0.99), 0.999)
    assert sgd.defaults["momentum"] == pytest.approx(0.98)
    usual = parts.meta_optimizer(net, run("class-aware", "adam"))
    assert usual.defaults["betas"] == (pytest.approx(0.9), 0.999)
    assert parts.meta_schedule(usual, run("class-aware", "adam")) is None
    schedule = parts.meta_schedule(usual, run("class-aware+late", "adam"))
    rates = []
    for _ in range(10):
        rates += schedule.get_last_lr()
        usual.step()
        schedule.step()
    assert rates == [0.5] * 8 + [5.0] * 2
