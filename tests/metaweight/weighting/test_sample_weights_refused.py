"""What the hook that records samples refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.recorded_samples import N, batches, networks, program
from torch import Tensor

from metaweight import (
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    GraphError,
    ImplicitProblem,
    LossError,
    ReweightedProblem,
)
from metaweight.weighting import SampleWeights
from metaweight.weighting.sample_table import SampleTable


class Plain(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1])


class Wrong(ReweightedProblem):
    """Tells of logits as ``self.cfg`` makes them."""

    def sample_losses(self, batch: Any) -> Tensor:
        logits = self.module(batch[0])
        self.note_logits(self.cfg(logits))
        return F.cross_entropy(logits, batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.ones_like(losses)


def alone(kind: type[Any], hook: Any = None, **more: Any) -> Engine:
    net, _ = networks()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    problem = kind("classifier", module=net, optimizer=sgd, train_data_loader=batches(), **more)
    config = EngineConfig(train_iters=2, strategy="cpu")
    return Engine([problem], config, hooks=[] if hook is None else [hook])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[:, 0], r"received \(4,\) for 4 losses; give the logits .*\(4, C\)"),
        (lambda logits: logits[:2], r"note_logits of problem 'classifier' received \(2, 3\)"),
        (lambda logits: [logits], r"received list for 4 losses"),
        (lambda logits: logits.argmax(1, keepdim=True), r"received \(4, 1\)"),
    ],
    ids=["scores", "rows", "list", "integers"],
)
def test_logits_that_are_none_are_refused(change: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        alone(Wrong, extra_config=change).run()


def test_only_a_training_step_notes_logits() -> None:
    engine = alone(Wrong, extra_config=lambda logits: logits)
    engine.run()
    problem = engine.classifier
    problem.sample_losses(batches()[0])
    assert problem._noted is None


def test_other_problems_are_refused() -> None:
    with pytest.raises(GraphError, match=r"SampleWeights\('b'\) names .* \(classifier\); give one"):
        alone(Plain, SampleWeights("b", 3)).run()
    with pytest.raises(ConfigurationError, match=r"ReweightedProblem, and Plain does not declare"):
        alone(Plain, SampleWeights("classifier", 3)).run()


@pytest.mark.parametrize(
    ("form", "index", "message"),
    [
        (lambda x, y, i: (x, y), None, r"a tuple of 2 parts .*\(inputs, labels, indices\)"),
        (
            lambda x, y, i: {"x": x, "y": y},
            None,
            r"a dict with 'x', 'y'.* mapping with 'index'",
        ),
        (lambda x, y, i: (x, y), 2, r"a tuple of 2 parts \(Tensor, Tensor\) and index=2"),
        (lambda x, y, i: (x, y, i[:2]), None, r"indices of shape \(2,\) .* for 4 samples; give"),
        (lambda x, y, i: (x, y, i.double()), None, r"type torch.float64 for 4 samples; give one"),
        (lambda x, y, i: (x, y, i + 9), None, r"has 14 samples, .* from \d+ to 1[4-9]; give"),
        (lambda x, y, i: (x, y, i - 9), None, r"hold indices from -\d to"),
    ],
    ids=["two parts", "a mapping", "no such part", "few", "floating", "large", "negative"],
)
def test_batches_that_do_not_say_which_samples(form: Any, index: Any, message: str) -> None:
    hook = SampleWeights("classifier", N, index=index)
    with pytest.raises(DataError, match=message):
        program(hook, [form(*batches()[0])]).run()


def test_settings_and_questions_before_a_run_are_refused(tmp_path: Path) -> None:
    for given, message in (
        ({"size": 0}, r"SampleWeights\(size=0\) must be an integer of at least 1"),
        ({"problem": 3}, r"SampleWeights\(problem=3"),
        ({"predictions": "no"}, r"SampleWeights\(predictions='no'\) .* True or False"),
        ({"folder": tmp_path / "none"}, r"none'\) is not a folder; make it first"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            SampleWeights(**{"problem": "classifier", "size": 3, **given})
    hook = SampleWeights("classifier", 3)
    assert hook.last.isnan().all() and hook.counts.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"\('classifier', 3\) has recorded nothing yet; run its"):
        hook.rank_label_issues([0, 1, 0])
    hook._table.put(torch.arange(3), {"weight": torch.ones(3), "loss": torch.ones(3)})
    with pytest.raises(ConfigurationError, match=r"ranked_by='x' .* weight, loss, confidence"):
        hook.rank_label_issues([0, 1, 0], ranked_by="x")
    with pytest.raises(ConfigurationError, match=r"values='x'"):
        hook.rank_label_issues([0, 1, 0], values="x")
    with pytest.raises(DataError, match=r"2 labels were given for 3 samples; give one for each"):
        hook.rank_label_issues([0, 1], filter_by=None)
    with pytest.raises(DataError, match=r"2 keys were given for 3 labels; give one for each"):
        hook.rank_label_issues([0, 1, 0], filter_by=None, keys=["a", "b"])


def test_predictions_of_some_steps_alone_are_refused() -> None:
    """Means of the others would count steps that had none."""
    table = SampleTable("SampleWeights", 3, None)
    places, ones = torch.tensor([0, 1]), torch.ones(2)
    table.put(places, {"loss": ones})
    with pytest.raises(DataError, match="has recorded loss of samples, and received loss, predic"):
        table.put(places, {"loss": ones, "prediction": torch.ones(2, 3)})
