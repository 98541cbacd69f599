"""What is recorded of each epoch, callbacks, and early stopping."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import nn

from metaweight import Engine, Hook, Problem
from metaweight.reweighter import Reweighter
from metaweight.reweighter.classes import Classes
from metaweight.reweighter.division import hold_out, taken_from
from metaweight.reweighter.epochs import BestEpoch
from metaweight.reweighter.samples import TensorSamples
from metaweight.reweighter.settings import Settings

DRAWS = np.random.default_rng(0)
RIGHT = np.arange(90) % 3
X = np.stack([np.cos(2 * RIGHT), np.sin(2 * RIGHT)], 1) + 0.6 * DRAWS.normal(size=(90, 2))
Y = np.where(DRAWS.random(90) < 0.3, (RIGHT + 1) % 3, RIGHT)
CLEAN, EVAL = (X[:18], RIGHT[:18]), (X[18:40], RIGHT[18:40])


def fitted(given: dict[str, Any] | None = None, **settings: Any) -> Reweighter:
    model = Reweighter(**{"epochs": 3, "random_state": 0, "device": "cpu", **settings})
    return model.fit(X[40:], Y[40:], clean=CLEAN, **(given or {}))


def test_the_evaluated_samples_are_measured_after_each_epoch() -> None:
    model = fitted({"eval_set": EVAL})
    assert model.history_["epoch"].tolist() == [1, 2, 3]
    assert {len(values) for values in model.history_.values()} == {3}
    # The last epoch is that of the model.
    assert model.history_["eval_accuracy"][-1] == pytest.approx(model.score(*EVAL))
    expected = log_loss(EVAL[1], model.predict_proba(EVAL[0]))
    assert model.history_["eval_loss"][-1] == pytest.approx(expected, rel=1e-9)
    without = fitted()
    np.testing.assert_array_equal(without.predict_proba(X), model.predict_proba(X))


def test_what_is_recorded_of_the_steps() -> None:
    """Of networks that do not move, and batches of all samples, it is known."""
    still = {"learning_rate": 1e-12, "meta_learning_rate": 1e-12, "warmup": 0.4}
    model = fitted(batch_size=100, **still)
    x, y = np.concatenate([X[40:], CLEAN[0]]), np.concatenate([Y[40:], CLEAN[1]])
    scaled = torch.from_numpy((x - X[40:].mean(0)) / X[40:].std(0))
    labels = torch.from_numpy(y)
    with torch.no_grad():
        logits = model.module_(scaled)
        losses = F.cross_entropy(logits, labels, reduction="none")
        w = model.weight_module_(losses)
    wrong = logits.argmax(1) != labels
    expected = {
        "loss": losses.mean(),
        "accuracy": 1 - wrong.double().mean(),
        "effective_share": w.sum() ** 2 / (len(w) * (w**2).sum()),
        "contradicted_weight": w[wrong].sum() / w.sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(model.history_[name], float(value), rtol=1e-6)
    # The first of three steps is before the weights are learned.
    clean = [np.nan, *[float(losses[-18:].mean())] * 2]
    np.testing.assert_allclose(model.history_["clean_loss"], clean, rtol=1e-6)


def test_callbacks_are_functions_of_the_record_and_hooks() -> None:
    class Counting(Hook):
        seen = 0

        def __init__(self) -> None:
            self.ended: list[int] = []

        def after_validation(self, engine: Engine, stats: Any) -> None:
            self.seen += 1

        def epoch_end(self, engine: Engine, problem: Problem) -> None:
            if problem.name == "classifier":
                self.ended.append(problem.count)

    records: list[dict[str, float]] = []
    counting = Counting()
    model = fitted({"callbacks": [records.append, counting]})
    assert counting.seen == 3
    # 27 steps. That a loader has ended is seen when more is drawn, of the last one at its end.
    assert counting.ended == [10, 19, 27]
    assert [record["loss"] for record in records] == model.history_["loss"].tolist()
    with pytest.raises(ValueError, match=r"received the callback 'loss'; give functions of a"):
        fitted({"callbacks": "loss"})


def test_the_progress_bar_shows_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    fitted({"eval_set": EVAL}, progress=True)
    shown = capsys.readouterr().err
    assert "classifier: loss=" in shown
    assert "eval_accuracy=" in shown


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    settings = {"epochs": 20, "learning_rate": 0.8, "patience": 2, "held_out": 0.5}
    model = fitted(early_stopping=True, **settings)
    losses = model.history_["held_out_loss"]
    assert model.best_epoch_ == losses.argmin() + 1
    assert len(losses) == model.best_epoch_ + 2 < 20
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    held = hold_out(torch.from_numpy(CLEAN[1]), 0.5, seed, str)[1].numpy()
    found = log_loss(CLEAN[1][held], model.predict_proba(CLEAN[0][held]))
    assert found == pytest.approx(losses.min(), rel=1e-9)
    pytest.importorskip("safetensors")
    model.save(tmp_path)
    again = Reweighter.load(tmp_path)
    assert again.best_epoch_ == model.best_epoch_
    np.testing.assert_array_equal(again.history_["loss"], model.history_["loss"])


def test_samples_held_out_are_not_trained_on() -> None:
    y = torch.arange(3).repeat(20)
    used, held = hold_out(y, 0.3, seed=0, called=str)
    assert torch.bincount(y[held]).tolist() == [6, 6, 6]
    assert sorted([*used.tolist(), *held.tolist()]) == list(range(60))
    data = TensorSamples(torch.arange(60), y)
    settings = Settings.of(Reweighter(nn.Linear(1, 3), early_stopping=True, random_state=0))
    chosen = torch.arange(30, 60)
    division = taken_from(data, chosen, Classes(np.arange(3)), settings)
    assert division.held_out is not None
    parts = [set(each.inputs.tolist()) for each in (division.clean, division.held_out)]  # type: ignore[union-attr]
    assert parts[0] | parts[1] == set(chosen.tolist())
    assert set(division.trained.inputs.tolist()) == set(range(60)) - parts[1]  # type: ignore[union-attr]


def test_clean_samples_that_were_found_are_held_out_too() -> None:
    model = Reweighter(epochs=2, early_stopping=True, clean_fraction=0.3, random_state=0).fit(X, Y)
    assert len(model.history_["held_out_loss"]) == 2
    assert len(model.clean_indices_) > 20


@pytest.mark.parametrize(
    ("settings", "given", "sentence"),
    [
        ({"patience": 0}, {}, "patience=0 was given; use at least 1"),
        ({"held_out": 1.0}, {}, r"held_out=1.0 was given; use a share in \(0, 1\)"),
        (
            {"early_stopping": True},
            {"clean": (X[:3], RIGHT[:3])},
            "one alone of the class 0; give two or more",
        ),
        ({}, {"eval_set": (X[:3], [0, 1, 3])}, "eval_set labels hold the class 3; give samples"),
        ({}, {"eval_set": X}, r"eval_set received ndarray; give \(X_eval_set, y_eval_set\)"),
    ],
)
def test_bad_input_is_refused(
    settings: dict[str, Any], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Reweighter(**settings).fit(**{"X": X, "y": Y, "clean": CLEAN, **given})


def test_the_best_epoch_is_one_with_a_loss() -> None:
    """Nothing is less than a loss that is not a number, which the first may have."""
    hook, module = BestEpoch(), nn.Linear(1, 1)
    engine: Any = SimpleNamespace(problems=[SimpleNamespace(name="c", module=module)])
    for epoch, loss in enumerate((math.nan, 3.0, math.nan, 2.0, 4.0), 1):
        hook.after_validation(engine, {"epoch": epoch, "held_out_loss": loss})
    assert hook.epoch == 4
