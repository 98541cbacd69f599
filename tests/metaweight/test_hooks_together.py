"""Statistics of two processes are those of all samples of both, as one process finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import criterion_checks, hook_checks, sample_weight_checks
from support.hook_checks import COLLECTED
from support.two_processes import CLOSE, same


@pytest.fixture(scope="module")
def collected_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hook_checks.collected(0, 1, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("case", COLLECTED)
def test_labels_are_judged_by_the_predictions_of_all(
    case: str, together: list[dict[str, Any]], collected_alone: Any
) -> None:
    """Thresholds, what is collected and the soft targets that come of it."""
    found = [each["collected"] for each in together]
    assert isinstance(found[0], dict), found[0]
    first, second = (each[case] for each in found)
    assert first["counts"].sum() > 0
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, collected_alone[case], **CLOSE)


def test_what_was_collected_is_saved_for_all(together: list[dict[str, Any]]) -> None:
    for found in together:
        whole, again = found["collected_resumed"]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_an_ensemble_chooses_and_weighs_the_same_samples_for_all(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    same(together, "ensembled", hook_checks.ensembled(0, 1, tmp_path))


def test_scores_are_those_of_the_first_process(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    same(together, "scored_apart", hook_checks.scored_apart(0, 1, tmp_path))


def test_scores_of_shares_are_refused_in_both(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["scored_shares"].startswith(
            "DataError: EnsembleHook has scored 12, 14 samples in the processes of one program"
        )


def test_teachers_keep_the_same_statistics_of_their_own(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The mean of means is that of the whole batch; variances are each share's, then averaged."""
    first, second = (found["own_teachers"] for found in together)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = hook_checks.own_teachers(0, 1, tmp_path)
    torch.testing.assert_close(first["mean"], alone["mean"], **CLOSE)


@pytest.mark.parametrize("name", ["sample_weights_kept", "uneven_sample_weights_kept"])
def test_values_of_samples_are_those_of_all(
    name: str, together: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = getattr(sample_weight_checks, name)(0, 1, tmp_path)
    assert alone["counts"].sum() == {"sample_weights_kept": 44}.get(name, 16)
    same(together, name, alone)


def test_values_of_samples_are_saved_for_all(together: list[dict[str, Any]]) -> None:
    for found in together:
        whole, again = found["sample_weights_resumed"]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_an_index_that_does_not_fit_is_refused_in_both(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["sample_weights_outside"].startswith(
            "DataError: SampleWeights('low', 24) has 24 samples, and batches hold indices from 0"
        )


def test_class_weights_begin_at_the_same_step(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = criterion_checks.weights_deferred(0, 1, tmp_path)
    assert alone["criterion.active"]
    same(together, "weights_deferred", alone)


def test_networks_that_teach_each_other_are_the_same_in_both(
    together: list[dict[str, Any]],
) -> None:
    first, second = (found["taught_by_each_other"] for found in together)
    assert not isinstance(first, str), first
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_early_learning_is_refused_in_both(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert found["early_learning"].startswith(
            "ConfigurationError: EarlyLearningClassifier 'low' is in a program of 2 processes"
        )
