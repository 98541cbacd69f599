"""Numbers to predict, several labels a sample, and losses of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.estimator_checks import check_estimator
from support.weigher_by_hand import weigher_by_hand
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metaweight import (
    CheckpointError,
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    LossError,
    ReweightedProblem,
    Reweighting,
)
from metaweight.data import TensorLoader
from metaweight.noise import GeneralisedCrossEntropy
from metaweight.reweighter import Reweighter, ReweightingRegressor
from metaweight.reweighter.label_issues import are_far
from metaweight.reweighter.samples import TensorSamples

DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(120, 3))
EXACT = 100 + 20 * X @ [1.0, -2.0, 0.5]
WRONG = DRAWS.random(120) < 0.25
WRONG[:20] = False
NUMBERS = np.where(WRONG, EXACT + 300 * DRAWS.normal(size=120), EXACT)
HELD = (X[:, :2] > 0).astype(int)
SWAPPED = WRONG[:, None] & np.array([True, False])
INDICATORS = np.where(SWAPPED, 1 - HELD, HELD)
PLAIN = {"random_state": 0, "device": "cpu"}


def fitted(model: Any, y: np.ndarray, clean: np.ndarray, **given: Any) -> Any:
    return model.fit(X[20:], y[20:], clean=(X[:20], clean[:20]), **given)


@pytest.fixture(scope="module")
def regressor() -> ReweightingRegressor:
    return fitted(ReweightingRegressor(epochs=15, **PLAIN), NUMBERS, EXACT)


@pytest.fixture(scope="module")
def multi_label() -> Reweighter:
    rates = {"learning_rate": 0.1, "meta_learning_rate": 0.01}
    return fitted(Reweighter(epochs=15, **rates, **PLAIN), INDICATORS, HELD)


def test_wrong_numbers_weigh_less_and_are_found(regressor: ReweightingRegressor) -> None:
    assert regressor.score(X, EXACT) == r2_score(EXACT, regressor.predict(X)) > 0.8
    assert regressor.sample_weights_.mean() == pytest.approx(1)
    wrong = WRONG[20:]
    weights = regressor.sample_weights_
    assert weights[wrong].mean() < 0.6 * weights[~wrong].mean()
    issues = regressor.label_issues_
    assert wrong[issues["index"]].mean() > 0.9
    assert (issues["given"] == NUMBERS[20:][issues["index"]]).all()
    suggested = regressor.predict(X[20:])[issues["index"]]
    np.testing.assert_allclose(issues["suggested"], suggested, rtol=1e-12)
    np.testing.assert_allclose(issues["residual"], issues["given"] - suggested, rtol=1e-9)
    assert issues["residual"].abs().is_monotonic_decreasing
    # As the figure shows them.
    suspicious = regressor.plot().axes[0].collections[1].get_offsets()
    assert len(suspicious) == len(issues)


def test_far_residuals() -> None:
    # Median 0; median absolute deviation 1, a deviation of 1.4826, three of which are 4.45.
    assert np.flatnonzero(are_far(np.array([-1.0, 0, 1, -1, 1, 4.4, -4.5]))).tolist() == [6]


def test_wrong_ones_of_several_labels_are_found(multi_label: Reweighter) -> None:
    found = multi_label.predict(X)
    assert multi_label.score(X, HELD) == accuracy_score(HELD, found) > 0.85
    assert multi_label.predict_proba(X).shape == (120, 2)
    assert (found == (multi_label.predict_proba(X) > 0.5)).all()
    assert multi_label.classes_.tolist() == [0, 1]
    weights, wrong = multi_label.sample_weights_, WRONG[20:]
    assert weights[wrong].mean() < 0.7 * weights[~wrong].mean()
    issues = multi_label.label_issues_
    given = INDICATORS[20:][issues["index"], issues["label"]]
    assert (issues["given"] == given).all()
    assert (issues["suggested"] == found[20:][issues["index"], issues["label"]]).all()
    assert (issues["suggested"] != issues["given"]).all()
    assert SWAPPED[20:][issues["index"], issues["label"]].mean() > 0.8
    assert issues["self_confidence"].is_monotonic_increasing
    short = Reweighter(epochs=1, **PLAIN)
    dense = fitted(short, INDICATORS, HELD).sample_weights_
    np.testing.assert_array_equal(fitted(short, csr_array(INDICATORS), HELD).sample_weights_, dense)


class Predictor(ReweightedProblem):
    """The network, by a loss of one number a sample."""

    loss: Any

    def sample_losses(self, batch: Any) -> Tensor:
        losses: Tensor = self.loss(self.module(batch[0]), batch[1])
        return losses

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights: Tensor = self.weigher(losses)
        return weights / weights.mean()


class Weigher(ImplicitProblem):
    loss: Any

    def training_step(self, batch: Any) -> Tensor:
        losses: Tensor = self.loss(self.predictor(batch[0]), batch[1])
        return losses.mean()


def cubed(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).abs() ** 3


SQUARED = ReweightingRegressor(**PLAIN)
NUMBER, LABELS = (NUMBERS, EXACT), (INDICATORS, HELD)


@pytest.mark.parametrize(
    ("model", "labels", "loss"),
    [
        (SQUARED, NUMBER, lambda out, y: (out[:, 0] - y) ** 2),
        (
            ReweightingRegressor(loss="absolute", **PLAIN),
            NUMBER,
            lambda out, y: (out[:, 0] - y).abs(),
        ),
        (ReweightingRegressor(loss=cubed, **PLAIN), NUMBER, lambda out, y: cubed(out[:, 0], y)),
        (
            Reweighter(**PLAIN),
            LABELS,
            # -y log σ(z) - (1 - y) log(1 - σ(z)), over the labels.
            lambda out, y: (F.softplus(out) - y * out).mean(1),
        ),
        (Reweighter(loss=F.cross_entropy, **PLAIN), (HELD[:, 0], HELD[:, 0]), None),
    ],
    ids=["squared", "absolute", "own", "several labels", "classes"],
)
def test_it_is_the_program_written_out(model: Any, labels: Any, loss: Any) -> None:
    """Problems of one's own on the engine, from the same initial values and batches."""
    noisy, right = labels
    model.set_params(epochs=2, batch_size=60, learning_rate=0.1)
    model.set_params(meta_learning_rate=0.01, warmup=0.2)
    fitted(model, noisy, right)
    loss = loss or (lambda out, y: F.cross_entropy(out, y.long(), reduction="none"))
    of_numbers = isinstance(model, ReweightingRegressor)
    mean, deviation = (noisy[20:].mean(), noisy[20:].std()) if of_numbers else (0, 1)
    # 100 samples and the 20 clean ones behind them: two batches of 60 an epoch.
    y = torch.from_numpy((np.concatenate([noisy[20:], right[:20]]) - mean) / deviation).double()
    x = torch.from_numpy((X - X[20:].mean(0)) / X[20:].std(0))
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    outputs = 1 if of_numbers else 2
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        layers = (nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
        net = nn.Sequential(*layers).double()
        torch.default_generator.manual_seed(seed)
        weigher = weigher_by_hand("sigmoid" if of_numbers else "exponential")
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    lower = Predictor(
        "predictor",
        # A fifth of 4 steps, rounded.
        Config(type=Reweighting(derivative="one_sided"), warmup_steps=1),
        module=net,
        optimizer=sgd,
        # A fifth of 4 steps is none to rise in.
        scheduler=torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: (4 - step) / 4),
        train_data_loader=TensorLoader(
            TensorSamples(x[[*range(20, 120), *range(20)]], y), 60, seed=seed
        ),
    )
    upper = Weigher(
        "weigher",
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), 0.01),
        train_data_loader=TensorLoader(TensorSamples(x[:20], y[-20:]), 20, seed=seed + 1),
    )
    lower.loss = upper.loss = loss
    edges: Any = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    Engine([upper, lower], EngineConfig(train_iters=4, strategy="cpu"), edges).run()
    with torch.no_grad():
        out = net.eval()(x)
        weights = weigher(loss(out[20:], y[:100]))
    # The same sums, but for the order of some.
    close = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(model.sample_weights_, (weights / weights.mean()).numpy(), **close)
    found = model._outputs(X)
    np.testing.assert_allclose(found.reshape(out.shape), out, **close)
    if of_numbers:
        np.testing.assert_allclose(model.predict(X), mean + deviation * out[:, 0], **close)


def test_without_clean_samples_those_of_small_loss_are_taken() -> None:
    model = ReweightingRegressor(epochs=5, clean_fraction=0.2, **PLAIN).fit(X, NUMBERS)
    assert len(model.clean_indices_) == 24
    assert WRONG[model.clean_indices_].mean() < 0.1
    labelled = Reweighter(epochs=5, learning_rate=0.3, **PLAIN).fit(X, INDICATORS)
    assert len(labelled.clean_indices_) == 12
    assert WRONG[labelled.clean_indices_].mean() < 0.1


def test_a_loss_of_ones_own_and_of_torch() -> None:
    """A module in single precision with values in it, and one without a name of its own."""
    y = np.array(["no", "yes"])[HELD[:, 0]]
    weighed = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0]))
    net = nn.Linear(3, 2)
    first = fitted(Reweighter(net, epochs=2, loss=weighed, **PLAIN), y, y)
    second = fitted(Reweighter(net, epochs=2, **PLAIN), y, y)
    single = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(first.predict_proba(X), second.predict_proba(X), **single)
    np.testing.assert_allclose(first.sample_losses_, second.sample_losses_, **single)
    robust = fitted(Reweighter(epochs=8, loss=GeneralisedCrossEntropy(), **PLAIN), y, y)
    assert robust.score(X, y) > 0.8


def test_a_network_of_ones_own_gives_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    x, y = (torch.from_numpy(part).float() for part in (X, EXACT / 20 - 5))
    data = TensorDataset(x, y)
    nets = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    nets[1][0].load_state_dict(nets[0].state_dict())
    models = [ReweightingRegressor(net, epochs=4, **PLAIN).fit(data) for net in nets]
    np.testing.assert_array_equal(models[0].predict(data), models[1].predict(x))
    with torch.no_grad():
        np.testing.assert_allclose(models[0].predict(x), models[0].module_(x)[:, 0], rtol=1e-6)
    assert models[0].score(data) == models[0].score(x, y) > 0.9
    models[0].save(tmp_path)
    again = ReweightingRegressor.load(tmp_path, nets[0])
    np.testing.assert_array_equal(again.predict(x), models[0].predict(x))


def test_saved_models_are_the_same(
    regressor: ReweightingRegressor, multi_label: Reweighter, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    for model in (regressor, multi_label):
        model.save(tmp_path)
        again = type(model).load(tmp_path)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        assert again.label_issues_.equals(model.label_issues_)
    own = ReweightingRegressor(epochs=1, loss=cubed, **PLAIN).fit(X, NUMBERS)
    own.save(tmp_path)
    with pytest.raises(CheckpointError, match="with a function loss=…, which is not saved"):
        ReweightingRegressor.load(tmp_path)
    assert ReweightingRegressor.load(tmp_path, loss=cubed).predict(X)[0] == own.predict(X)[0]


def test_training_that_diverges_says_so_and_leaves_the_model_as_it_was() -> None:
    model = ReweightingRegressor(epochs=2, **PLAIN).fit(X, NUMBERS)
    before = model.predict(X)
    with pytest.raises(LossError, match=r"ReweightingRegressor diverged: .* lower learning_rate"):
        model.set_params(learning_rate=1e200).fit(X, NUMBERS)
    np.testing.assert_array_equal(model.predict(X), before)


def test_epochs_are_recorded_and_the_best_one_kept() -> None:
    settings = {"epochs": 3, "early_stopping": True, **PLAIN}
    held_out = (X[:9], EXACT[:9])
    model = fitted(ReweightingRegressor(**settings), NUMBERS, EXACT, eval_set=held_out)
    assert model.best_epoch_ == model.history_["held_out_loss"].argmin() + 1
    found = model.history_["eval_r2"][model.best_epoch_ - 1]
    assert found == pytest.approx(model.score(*held_out))
    labelled = fitted(Reweighter(**settings), INDICATORS, HELD, eval_set=(X, HELD))
    found = labelled.history_["eval_accuracy"][labelled.best_epoch_ - 1]
    assert found == pytest.approx(labelled.score(X, HELD))


@pytest.mark.parametrize(
    ("model", "given", "sentence"),
    [
        (ReweightingRegressor(), {"X": np.full((120, 3), "red")}, "Convert your data to numeric"),
        (ReweightingRegressor(), {"y": np.full(120, "red")}, "received y of type <U3; give num"),
        (ReweightingRegressor(), {"y": NUMBERS[:5]}, "inconsistent numbers of samples"),
        (ReweightingRegressor(), {"y": INDICATORS}, "y should be a 1d array"),
        (ReweightingRegressor(), {"y": np.where(WRONG, np.nan, EXACT)}, "contains NaN"),
        (ReweightingRegressor(), {"X": np.where(X > 1, np.nan, X)}, "contains NaN"),
        (ReweightingRegressor(), {"y": None}, "requires y to be passed"),
        (ReweightingRegressor(), {"clean": (X[:2], ["a", "b"])}, "received y of type <U1; give"),
        (ReweightingRegressor(epochs=0), {}, "epochs=0 was given"),
        (ReweightingRegressor(loss="cubed"), {}, "loss='cubed' was given; use 'squared' or 'abso"),
        (ReweightingRegressor(nn.Linear(3, 2)), {}, r"\(2, 2\) for 2 samples; one number a sample"),
        (
            ReweightingRegressor(epochs=1, loss=lambda out, y: ((out - y) ** 2).mean()),
            {},
            r"returned shape \(\) for .* one number per sample",
        ),
        (Reweighter(class_aware=True), {"y": HELD}, "samples have several labels each; leave it"),
        (
            Reweighter(),
            {"y": HELD, "clean": (X[:2], HELD[:2, [0, 0, 1]])},
            "give rows of 2 zeros and",
        ),
        (Reweighter(), {"y": HELD[:, 0], "clean": (X[:2], HELD[:2])}, "give one class a sample"),
        (Reweighter(), {"y": HELD + np.arange(2)}, "y should be a 1d array"),
    ],
)
def test_bad_input_is_refused(model: Any, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model.fit(**{"X": X, "y": NUMBERS, **given})


def test_an_unfitted_model_says_so() -> None:
    for method in ("predict", "plot", "save"):
        with pytest.raises(NotFittedError):
            getattr(ReweightingRegressor(), method)(*([] if method == "plot" else [X]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_pass() -> None:
    found = check_estimator(ReweightingRegressor(epochs=20, random_state=0), on_fail=None)
    failed = {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"}
    assert not failed
    assert sum(each["status"] == "passed" for each in found) > 45
