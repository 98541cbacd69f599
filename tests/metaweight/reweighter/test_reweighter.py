"""The estimator as scikit-learn's users meet it."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import dok_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from support.weigher_by_hand import weigher_by_hand
from torch import nn

from metaweight import (
    CheckpointError,
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    ReweightedProblem,
    Reweighting,
)
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.noise import confident_learning
from metaweight.reweighter import Reweighter

CLASSES = ("left", "middle", "right")
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def data() -> Data:
    """Samples around three places on a line, their right labels, and labels of which 30 % moved."""
    draws = np.random.default_rng(0)
    classes = np.arange(180) % 3
    x = draws.normal(size=(180, 2)) * 0.3
    x[:, 0] += 3 * classes
    given = classes.copy()
    wrong = draws.random(180) < 0.3
    given[wrong] = (classes[wrong] + 1) % 3
    names = np.array(CLASSES)
    return 1e6 + 1e3 * x, names[classes], names[given]


def few_clean(data: Data) -> tuple[np.ndarray, np.ndarray]:
    return data[0][:15], data[1][:15]


def fitted(data: Data, **settings: Any) -> Reweighter:
    x, _, given = data
    model = Reweighter(random_state=0, device="cpu", **settings)
    return model.fit(x[15:], given[15:], clean=few_clean(data))


@pytest.fixture(scope="module")
def model(data: Data) -> Reweighter:
    return fitted(data, epochs=8)


def test_wrong_labels_weigh_less_and_are_found(data: Data, model: Reweighter) -> None:
    x, right, given = data
    wrong = right[15:] != given[15:]
    assert model.score(x, right) > 0.95
    assert model.sample_weights_.shape == (165,)
    assert model.sample_weights_.mean() == pytest.approx(1)
    assert model.sample_weights_[wrong].mean() < 0.5 * model.sample_weights_[~wrong].mean()
    issues = model.label_issues_
    assert list(issues.columns) == ["index", "given", "suggested", "weight", "self_confidence"]
    assert wrong[issues["index"]].mean() > 0.95
    assert len(issues) > 0.9 * wrong.sum()
    assert issues["self_confidence"].is_monotonic_increasing
    assert (issues["given"] == given[15:][issues["index"]]).all()
    assert (issues["suggested"] != issues["given"]).all()
    assert (issues["weight"] == model.sample_weights_[issues["index"]]).all()


def test_issues_are_those_of_cleanlab_where_predictions_contradict_the_label(
    data: Data, model: Reweighter
) -> None:
    pytest.importorskip("cleanlab")
    x, _, given = data
    numbers = np.searchsorted(model.classes_, given[15:])
    expected = confident_learning(
        numbers, probabilities=model.predict_proba(x[15:]), filter_by="predicted_neq_given"
    )
    assert model.label_issues_["index"].tolist() == expected.indices.tolist()
    suggested = model.classes_[expected.suggested.numpy()]
    assert model.label_issues_["suggested"].tolist() == suggested.tolist()


def test_the_figure_tells_the_suspicious_samples_apart(model: Reweighter) -> None:
    points, bars, *_ = model.plot().axes
    found = points.collections[1].get_offsets()
    issues = model.label_issues_["index"].sort_values()
    np.testing.assert_array_equal(found[:, 0], model.sample_losses_[issues])
    np.testing.assert_array_equal(found[:, 1], model.sample_weights_[issues])
    assert f"suspicious ({len(issues)})" in [t.get_text() for t in bars.get_legend().get_texts()]


def test_predictions_are_those_of_the_network(data: Data, model: Reweighter) -> None:
    x = data[0]
    mean, deviation = x[15:].mean(0), x[15:].std(0)
    with torch.no_grad():
        logits = model.module_(torch.from_numpy((x - mean) / deviation))
    np.testing.assert_allclose(model.predict_proba(x), logits.softmax(1).numpy(), rtol=1e-9)
    assert (model.predict(x) == np.array(CLASSES)[logits.argmax(1)]).all()
    assert list(model.classes_) == sorted(CLASSES)


class Classifier(ReweightedProblem):
    def sample_losses(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

    def sample_weights(self, losses: torch.Tensor, batch: Any) -> torch.Tensor:
        weights: torch.Tensor = self.weigher(losses)
        return weights / weights.mean()


class Weigher(ImplicitProblem):
    def training_step(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.classifier(batch[0]), batch[1])


def test_it_is_the_program_written_out(data: Data) -> None:
    """Problems of one's own on the engine, from the same initial values and batches."""
    x, _, given = data
    settings = {"meta_learning_rate": 0.01, "warmup": 0.2}
    model = fitted(data, epochs=2, batch_size=50, learning_rate=0.3, **settings)
    numbers = {name: number for number, name in enumerate(sorted(CLASSES))}
    mean, deviation = x[15:].mean(0), x[15:].std(0)
    scaled = torch.from_numpy((x - mean) / deviation)
    labels = torch.tensor([numbers[name] for name in (*data[1][:15], *given[15:])])
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        ).double()
        torch.default_generator.manual_seed(seed)
        weigher = weigher_by_hand()
    # 165 samples and the 15 clean ones behind them: four batches of 50 an epoch.
    order = torch.cat([torch.arange(15, 180), torch.arange(15)])
    noisy = LabelledTensors(scaled[order], labels[order], num_classes=3)
    clean = LabelledTensors(scaled[:15], labels[:15], num_classes=3)
    steps = 8
    sgd = torch.optim.SGD(net.parameters(), 0.3, momentum=0.9, weight_decay=5e-4, nesterov=True)
    # Up to the whole rate within 1.6 steps, then down to nothing.
    shares = [1 / 1.6, *(min(1.0, (8 - k) / (8 - 1.6 + 1)) for k in range(1, 9))]
    lower = Classifier(
        "classifier",
        # A fifth of 8 steps, rounded.
        Config(type=Reweighting(derivative="one_sided"), warmup_steps=2),
        module=net,
        optimizer=sgd,
        scheduler=torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: shares[step]),
        train_data_loader=TensorLoader(noisy, 50, seed=seed),
    )
    upper = Weigher(
        "weigher",
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), 0.01),
        train_data_loader=TensorLoader(clean, 15, seed=seed + 1),
    )
    edges: Any = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    Engine([upper, lower], EngineConfig(train_iters=steps, strategy="cpu"), edges).run()
    with torch.no_grad():
        logits = net.eval()(scaled)
        losses = F.cross_entropy(logits, labels, reduction="none")[15:]
        weights = weigher(losses)
    # The same sums, but for the order of the division by the mean weight.
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(model.predict_proba(x), logits.softmax(1).numpy(), **close)
    np.testing.assert_allclose(model.sample_weights_, (weights / weights.mean()).numpy(), **close)


def test_a_fit_that_fails_leaves_the_model_as_it_was(data: Data, model: Reweighter) -> None:
    x, _, given = data
    before = model.predict_proba(x)
    for settings, labels in (({"epochs": 0}, given), ({}, ["one"] * len(x))):
        with pytest.raises(ValueError, match=r"was given|of one class"):
            model.set_params(**settings).fit(x, labels)
        model.set_params(epochs=8)
        np.testing.assert_array_equal(model.predict_proba(x), before)
        assert model.label_issues_["given"].isin(CLASSES).all()
    never = Reweighter(random_state=0)
    with pytest.raises(ValueError, match="of one class"):
        never.fit(x, ["one"] * len(x))
    with pytest.raises(NotFittedError):
        never.predict(x)


def test_the_same_seed_gives_the_same_model(data: Data, model: Reweighter) -> None:
    torch.default_generator.manual_seed(5)
    state = torch.get_rng_state()
    again = fitted(data, epochs=8)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(again.predict_proba(data[0]), model.predict_proba(data[0]))
    np.testing.assert_array_equal(again.sample_weights_, model.sample_weights_)


def test_it_is_pickled_and_cloned(data: Data, model: Reweighter) -> None:
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(data[0]), model.predict_proba(data[0]))
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(data[0])


def test_without_clean_samples_confirmed_ones_are_taken(data: Data) -> None:
    x, right, given = data
    model = Reweighter(epochs=8, clean_fraction=0.2, random_state=0).fit(x, given)
    assert len(model.clean_indices_) == sum(round(0.2 * n) for n in Counter(given).values())
    assert (right == given)[model.clean_indices_].mean() > 0.95
    assert model.score(x, right) > 0.9


def test_a_network_of_ones_own_is_copied_and_a_function_is_told_the_sizes(data: Data) -> None:
    x, right, given = data
    images = ((x - 1e6) / 1e3).reshape(180, 1, 1, 2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def make(features: int, classes: int) -> nn.Module:
        assert (features, classes) == (2, 3)
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 3))

    for module in (net, make):
        model = Reweighter(module, epochs=8, random_state=0, device="cpu")
        model.fit(images[15:], given[15:], clean=(images[:15], right[:15]))
        assert model.score(images, right) > 0.8
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_frames_tensors_and_lists_are_the_same(data: Data, model: Reweighter) -> None:
    pandas = pytest.importorskip("pandas")
    x, _, given = data
    expected = model.predict_proba(x)
    frame, series = pandas.DataFrame(x, columns=["a", "b"]), pandas.Series(given)
    named = Reweighter(random_state=0, epochs=8, device="cpu").fit(
        frame[15:], series[15:], clean=(frame[:15], data[1][:15].tolist())
    )
    assert list(named.feature_names_in_) == ["a", "b"]
    np.testing.assert_array_equal(named.predict_proba(frame), expected)
    np.testing.assert_array_equal(model.predict_proba(torch.from_numpy(x)), expected)


def test_pipelines_and_searches(data: Data) -> None:
    x, _, given = data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Reweighter(epochs=1, random_state=0)),
        {"reweighter__learning_rate": [0.01, 0.1]},
        cv=2,
    ).fit(x, given)
    assert search.best_params_["reweighter__learning_rate"] in (0.01, 0.1)


@pytest.mark.parametrize("class_aware", [False, True])
def test_a_saved_model_is_the_same(data: Data, tmp_path: Path, class_aware: bool) -> None:
    pytest.importorskip("safetensors")
    model = fitted(data, epochs=1, class_aware=class_aware)
    path = model.save(tmp_path / "model")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    again = Reweighter.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.predict_proba(data[0]), model.predict_proba(data[0]))
    assert (again.predict(data[0]) == model.predict(data[0])).all()
    assert again.label_issues_.equals(model.label_issues_)
    losses, labels = torch.tensor([0.1, 3.0]).double(), torch.tensor([0, 2])
    expected = model.weight_module_(losses, labels)
    assert torch.equal(again.weight_module_(losses, labels), expected)


class Tied(nn.Module):
    """Two layers of one weight, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2).double()
        self.second = nn.Linear(2, 2).double()
        self.second.weight = self.first.weight
        self.last = nn.Linear(2, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(x).tanh()))
        return out


def test_tied_weights_numbers_of_numpy_and_double_precision(data: Data, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    x = (data[0] - 1e6) / 1e3
    rate = np.float64(0.1)
    model = Reweighter(Tied(), epochs=1, learning_rate=rate, random_state=np.int64(3))
    model.fit(x, np.arange(180) % 3).save(tmp_path)
    again = Reweighter.load(tmp_path, Tied())
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert again.module_.second.weight is again.module_.first.weight
    assert (again.learning_rate, again.random_state) == (0.1, 3)


def test_a_saved_model_of_ones_own_network(data: Data, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    x = ((data[0] - 1e6) / 1e3).astype(np.float32)
    model = Reweighter(nn.Linear(2, 3), epochs=1, random_state=0).fit(x, np.arange(180) % 3)
    model.save(tmp_path)
    again = Reweighter.load(tmp_path, nn.Linear(2, 3))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    with pytest.raises(CheckpointError, match="was trained with a module of its own; give it as"):
        Reweighter.load(tmp_path)
    with pytest.raises(CheckpointError, match="is of another module: "):
        Reweighter.load(tmp_path, nn.Linear(2, 4))
    file = tmp_path / "reweighter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; save the model again"):
        Reweighter.load(tmp_path, nn.Linear(2, 3))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"holds no reweighter\.safetensors; give a folder"):
        Reweighter.load(tmp_path)


X = np.arange(12.0).reshape(6, 2)
Y = ["a", "b"] * 3


@pytest.mark.parametrize(
    ("settings", "given", "sentence"),
    [
        ({"epochs": 0}, {}, "epochs=0 was given; use at least 1"),
        ({"batch_size": 0}, {}, "batch_size=0 was given"),
        ({"learning_rate": 0.0}, {}, r"learning_rate=0.0 was given; use a number above 0"),
        ({"warmup": 1.0}, {}, r"warmup=1.0 was given; use a share in \[0, 1\)"),
        ({"clean_fraction": 0.0}, {}, r"clean_fraction=0.0 was given; use a share in \(0, 1\]"),
        ({}, {"y": Y[:5]}, "inconsistent numbers of samples"),
        ({}, {"X": np.where(X == 3, np.nan, X)}, "contains NaN"),
        ({}, {"X": np.array([["red", "blue"]] * 6)}, "Convert your data to numeric values"),
        ({}, {"X": dok_array(X)}, "Sparse data was passed for X, but dense data is required"),
        ({}, {"y": ["a"] * 6}, "labels of one class, 'a'"),
        ({}, {"clean": (X[:2], ["a", "c"])}, "clean labels hold the class 'c'"),
        ({}, {"clean": (X[:1], ["a"])}, "no clean sample is of the class 'b'"),
        ({}, {"clean": (X[:2], ["a"])}, "clean holds 2 samples and 1 labels"),
        ({}, {"clean": (X[:2, :1], Y[:2])}, "X has 1 features, but Reweighter is expecting 2"),
        ({}, {"clean": X}, r"clean received ndarray; give \(X_clean, y_clean\)"),
        ({"module": nn.Linear(2, 5)}, {}, r"outputs of shape \(2, 5\) for 2 samples; logits of 2"),
    ],
)
def test_bad_input_is_refused(
    settings: dict[str, Any], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        Reweighter(**{"epochs": 1, **settings}).fit(**{"X": X, "y": Y, **given})


def test_a_frame_without_pandas(model: Reweighter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        _ = model.label_issues_


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_pass() -> None:
    found = check_estimator(Reweighter(epochs=20, random_state=0), on_fail=None)
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert not failed
    assert sum(each["status"] == "passed" for each in found) > 45
