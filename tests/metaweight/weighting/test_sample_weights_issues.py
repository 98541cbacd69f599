"""Labels ranked by what a hook has recorded of their samples."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.recorded_samples import CLASSES, N, program, samples
from torch import Tensor

from metaweight import (
    DataError,
)
from metaweight.weighting import (
    SampleWeights,
    WeightedClassifier,
)
from metaweight.weighting.label_issue_ranking import ranked_label_issues


class Unnoted(WeightedClassifier):
    """Keeps its logits to itself."""

    def note_logits(self, logits: Tensor) -> None:
        pass


@pytest.mark.parametrize("kind", [Unnoted, WeightedClassifier])
def test_without_predictions_all_samples_can_be_ranked(kind: type[Any]) -> None:
    hook = SampleWeights("classifier", N, predictions=kind is Unnoted)
    program(hook, kind=kind).run()
    assert hook.predictions is None and hook.mean_predictions is None
    with pytest.raises(DataError, match=r"filter_by='both' .*note_logits.*filter_by=None"):
        hook.rank_label_issues(samples().labels, filter_by="both")
    with pytest.raises(DataError, match=r"ranked_by='confidence' was asked for, which needs"):
        hook.rank_label_issues(samples().labels, filter_by=None, ranked_by="confidence")
    names = [f"image {i}" for i in range(N)]
    labels = samples().labels
    labels[4] = -1
    found = hook.rank_label_issues(labels, filter_by=None, keys=names, ranked_by="weight")
    weights, losses = hook.mean.tolist(), hook.mean_losses.tolist()
    kept = [i for i in range(N - 3) if i != 4]
    assert found.indices.tolist() == sorted(kept, key=lambda i: (weights[i], -losses[i]))
    assert found.keys == tuple(names[i] for i in found.indices.tolist())
    assert torch.equal(found.given, labels[found.indices])
    assert found.suggested.eq(-1).all() and found.confidence.isnan().all()
    assert found.joint.shape == (0, 0) and found.size == N
    by_loss = hook.rank_label_issues(labels, filter_by=None, values="last")
    last = hook.losses.tolist()
    assert by_loss.indices.tolist() == sorted(kept, key=lambda i: -last[i])


def test_equal_weights_are_ranked_by_loss() -> None:
    hook = SampleWeights("classifier", 4)
    loss = torch.tensor([1.0, 3.0, 2.0, 0.0])
    weight = torch.tensor([0.5, 0.0, 0.0, 0.0])
    hook._table.put(torch.arange(4), {"weight": weight, "loss": loss})
    found = hook.rank_label_issues([0, 0, 1, 1], filter_by=None, ranked_by="weight")
    assert found.indices.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("filter_by", ["prune_by_noise_rate", "confident_learning"])
def test_issues_are_those_that_cleanlab_finds(filter_by: Any) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    hook = SampleWeights("classifier", 60)
    for _ in range(3):
        logits = 2 * F.one_hot(labels, CLASSES) + torch.randn(60, CLASSES, generator=generator)
        rows = {"weight": torch.rand(60, generator=generator), "prediction": logits.softmax(1)}
        hook._table.put(torch.arange(60), {**rows, "loss": rows["weight"]})
    noisy = torch.where(torch.arange(60) < 20, (labels + 1) % CLASSES, labels)
    for values, predicted in (("mean", hook.mean_predictions), ("last", hook.predictions)):
        expected = filters.find_label_issues(
            noisy.numpy(),
            predicted.double().numpy(),
            return_indices_ranked_by="self_confidence",
            filter_by=filter_by,
            n_jobs=1,
        )
        found = hook.rank_label_issues(
            noisy, values=values, ranked_by="confidence", filter_by=filter_by
        )
        assert found.indices.tolist() == expected.tolist() and len(found) > 9
        weighed = hook.rank_label_issues(
            noisy, values=values, ranked_by="weight", filter_by=filter_by
        )
        assert sorted(weighed.indices.tolist()) == sorted(expected.tolist())
        weights = (hook.mean if values == "mean" else hook.last)[weighed.indices]
        assert weights.tolist() == sorted(weights.tolist())
        assert torch.equal(weighed.suggested, predicted.argmax(1)[weighed.indices])
        rows = predicted.double().gather(1, noisy[:, None]).squeeze(1)
        torch.testing.assert_close(weighed.confidence, rows[weighed.indices])


def test_samples_never_seen_are_no_issues_and_all_can_be_ranked_by_confidence() -> None:
    pytest.importorskip("cleanlab")
    hook = SampleWeights("classifier", N)
    program(hook).run()
    found = hook.rank_label_issues(samples().labels, filter_by="predicted_neq_given")
    assert found.size == N and found.indices.max() < N - 3
    every = hook.rank_label_issues(samples().labels, filter_by=None, ranked_by="confidence")
    assert len(every) == N - 3
    assert every.confidence.tolist() == sorted(every.confidence.tolist())
    assert torch.equal(every.suggested, hook.mean_predictions[every.indices].argmax(1))


def test_a_column_of_keys_is_read_in_its_order() -> None:
    names = pd.Series(["a", "b", "c"], index=[2, 0, 1])
    rows = {"keys": names, "filter_by": None, "frac_noise": 1.0, "ranked_by": "loss"}
    losses = torch.tensor([1.0, 3.0, 2.0])
    assert ranked_label_issues([0, 1, 0], torch.ones(3), losses, None, **rows).keys == (
        *("b", "c", "a"),
    )
