"""Weights that have stopped telling samples apart are told of, once, with what to do."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.faulty import Weighted, reweighted
from support.reweighting import Plain
from torch import Tensor

from metaweight import Config, ConfigurationError, Engine, GraphError, WeightCollapse


class Given(Weighted):
    """Weights that a list says, one tensor a step."""

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        given: Tensor = self.cfg[min(self.count, len(self.cfg)) - 1]
        return given + 0.0 * self.judge(losses)


def run(weights: list[Tensor], steps: int, **settings: Any) -> tuple[list[str], WeightCollapse]:
    hook = WeightCollapse("classifier", **settings)
    engine = reweighted(range(steps), range(steps), kind=Given, hooks=[hook])
    engine.classifier.cfg = weights
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.run()
    return [str(w.message) for w in caught if "sample weights" in str(w.message)], hook


def one_hot(value: float = 1.0) -> Tensor:
    weights = torch.full((10,), 1e-6)
    weights[4] = value
    return weights


SOUND = torch.linspace(0.1, 0.9, 10)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            SOUND * 1e-4,
            r"problem 'classifier' are nearly 0: in the 3 steps up to step 3 their mean was at "
            r"most 5e-05, so that it hardly trains.*normalise=True.*'judge' a smaller learning",
        ),
        (
            torch.full((10,), 0.5) + 1e-5 * SOUND,
            r"nearly equal: .* their standard deviation was at most 5\.\d*e-06 of their mean.*Give "
            r"'judge' more meta samples",
        ),
        (one_hot(), r"those of few samples: .* effective sample size was at most 1 of a batch"),
        (torch.zeros(10), r"nearly 0: .* at most 0, "),
    ],
)
def test_each_kind_is_told_once(weights: Tensor, message: str) -> None:
    told, hook = run([weights], 9, every=3)
    assert len(told) == 1
    assert re.search(message, told[0]), told[0]
    assert len(hook.warned) == 1


@pytest.mark.parametrize("bad", [SOUND * 1e-4, torch.full((10,), 0.5), one_hot()])
def test_one_sound_batch_of_a_window_is_enough(bad: Tensor) -> None:
    assert run([bad, SOUND, bad, bad, SOUND, bad], 6, every=3)[0] == []


class Normalised(Weighted):
    """The weight of one sample, through a softmax over the batch or by itself."""

    def sample_losses(self, batch: Any) -> Tensor:
        losses: Tensor = super().sample_losses(batch)
        return losses[:1]

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        score: Tensor = self.judge(losses + self.count)
        return score.softmax(0) if self.cfg else score


@pytest.mark.parametrize("softmax", [True, False])
def test_batches_of_one_sample_are_looked_at_together(softmax: bool) -> None:
    hook = WeightCollapse("classifier", every=3, equal=1e-6)
    config = Config(gradient_accumulation=2)
    engine = reweighted(range(8), range(8), kind=Normalised, hooks=[hook], config=config)
    engine.classifier.cfg = softmax
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.run()
    told = [str(w.message) for w in caught if "sample weights" in str(w.message)]
    assert len(told) == softmax
    if softmax:
        assert "each in a batch of one sample" in told[0] and "no hypergradient" in told[0]
    other = WeightCollapse("classifier")
    other.load_state_dict(hook.state_dict())
    assert len(other.state_dict()["lone"]) == len(hook.state_dict()["lone"])


def test_nothing_is_told_before_a_window_is_full() -> None:
    assert run([torch.zeros(10)], 4, every=5)[0] == []


def test_thresholds_of_zero_never_warn() -> None:
    for weights in (torch.zeros(10), torch.full((10,), 0.5), one_hot()):
        assert run([weights], 3, every=1, zero=0, equal=0, few=0)[0] == []


def test_several_kinds_are_told_one_after_the_other() -> None:
    told, hook = run([SOUND * 1e-5, torch.full((10,), 0.5), one_hot(), one_hot()], 4, every=1)
    assert len(told) == 3
    assert hook.warned == {"nearly 0", "nearly equal", "those of few samples"}


def test_numbers_are_those_of_the_formulas(tmp_path: Path) -> None:
    first, second = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)).double()
    hook = WeightCollapse("classifier", every=2)
    settings: dict[str, Any] = {"logger_type": "jsonl", "log_dir": tmp_path}
    engine = reweighted(range(2), range(2), kind=Given, hooks=[hook], **settings)
    engine.classifier.cfg = [first, second]
    engine.run()
    (path,) = tmp_path.glob("*/metrics.jsonl")
    record = json.loads(path.read_text())
    sizes = [float(w.sum() ** 2 / (w**2).sum()) for w in (first, second)]
    assert (record["tag"], record["step"]) == ("weights/classifier", 2)
    assert record["mean"] == pytest.approx(max(float(w.mean()) for w in (first, second)))
    spreads = [float(w.std(correction=0) / w.mean()) for w in (first, second)]
    assert record["spread"] == pytest.approx(max(spreads))
    assert record["effective_size"] == pytest.approx(max(sizes))
    assert record["share"] == pytest.approx((max(sizes) - 1) / 9)


def test_the_weights_are_those_of_the_training_pass() -> None:
    """A step's result holds the weights that its loss was computed with, without a graph."""
    seen: list[Tensor] = []

    class Drawing(Given):
        """Gives other weights each time it is asked, as a hypergradient's passes would."""

        asked = 0

        def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
            self.asked += 1
            return super().sample_weights(losses, batch) * 0 + self.asked

    class Seeing(WeightCollapse):
        def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
            if problem.name == "classifier":
                seen.append(result.sample_weights)
            super().after_step(engine, problem, result)

    engine = reweighted(range(3), range(3), kind=Drawing, hooks=[Seeing("classifier")])
    engine.classifier.cfg = [torch.ones(10, dtype=torch.float64)] * 12
    engine.run()
    assert [w.shape for w in seen] == [(10,)] * 3
    assert not any(w.requires_grad for w in seen)
    # A step asks once for its loss and once for the hypergradient's product.
    assert [float(w[0]) for w in seen] == [1.0, 3.0, 5.0]


def test_batches_that_are_not_finite_are_no_part_of_a_window() -> None:
    hook = WeightCollapse("classifier", every=3)
    engine = reweighted(range(4), range(4), bad=[1], hooks=[hook], non_finite="skip")
    engine.run()
    assert hook.state_dict()["steps"] == 0


def test_goes_on_where_it_was_saved() -> None:
    hook, other = (WeightCollapse("classifier", every=4) for _ in range(2))
    reweighted(range(3), range(3), hooks=[hook]).run()
    other.load_state_dict(hook.state_dict())
    assert other.state_dict()["steps"] == 3
    assert torch.equal(other.state_dict()["largest"], hook.state_dict()["largest"])


def test_an_unknown_problem_is_refused() -> None:
    with pytest.raises(GraphError, match=r"'net'\) names a problem .* \(judge, classifier\)"):
        reweighted([0], [0], hooks=[WeightCollapse("net")]).run()


def test_a_problem_without_declared_weights_is_refused() -> None:
    engine = reweighted([0], [0], hooks=[WeightCollapse("classifier")], kind=Plain)
    with pytest.raises(ConfigurationError, match="Plain does not declare any; derive it from Rew"):
        engine.run()
