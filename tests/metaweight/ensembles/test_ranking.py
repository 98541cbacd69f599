"""Selections and weights by rank: worked numbers, properties, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaweight import ConfigurationError, DataError
from metaweight.ensembles import resample, reweight
from metaweight.ensembles.ranking import RankRange

SCORES = torch.tensor([0.7, 0.1, 0.9, 0.3, 0.5, 0.2, 1, 0.4, 0.8, 0.6], dtype=torch.float64)
TENTHS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_resample_keeps_the_middle_by_ascending_score() -> None:
    assert resample(SCORES, 0.2, 0.8).tolist() == [3, 7, 4, 9, 0, 8]
    # floor(10 * .05) = 0 and floor(10 * .95) = 9: nothing at the low end, one at the high end.
    assert resample(SCORES, 0.05, 0.95).tolist() == [1, 5, 3, 7, 4, 9, 0, 8, 2]


def test_a_share_that_is_an_integer_but_for_rounding_is_that_integer() -> None:
    assert 100 * 0.29 < 29
    assert RankRange(0.0, 0.29).bounds(100) == (0, 29)


def test_ties_stay_in_the_order_given() -> None:
    assert resample(torch.zeros(50), 0.0, 1.0).tolist() == list(range(50))


def test_binned_weights_of_200_descending_scores() -> None:
    weights = reweight(torch.arange(200.0).double().flip(0), 0.05, 0.95, "binned")
    assert weights[:10].tolist() == TENTHS
    assert weights[-10:].tolist() == TENTHS[::-1]
    assert weights.sum().item() == pytest.approx(189, abs=1e-9)


def test_bins_of_a_tail_below_ten_samples_have_no_width() -> None:
    assert reweight(torch.arange(100.0).flip(0), 0.05, 0.95, "binned").eq(1).all()


def test_bins_count_from_the_extremes_and_leave_a_remainder_at_one() -> None:
    # Tails of 24 and 31 samples of 240: widths 2 and 3, remainders 4 and 1 next to the middle.
    weights = reweight(torch.arange(240.0), 24 / 240, 209 / 240, "binned").tolist()
    low = [step / 10 for step in range(10) for _ in range(2)] + [1.0] * 4
    high = [step / 10 for step in range(10) for _ in range(3)] + [1.0]
    assert weights[:24] == pytest.approx(low)
    assert weights[209:][::-1] == pytest.approx(high)
    assert weights[24:209] == [1.0] * 185


def test_linear_weights_work_for_any_number() -> None:
    assert reweight(SCORES, 0.2, 0.6).tolist() == pytest.approx(
        # Ranks of the scores: 6 0 8 2 4 1 9 3 7 5; lower tail 0, 1/2; upper 0, 1/4, 1/2, 3/4.
        [0.75, 0, 0.25, 1, 1, 0.5, 0, 1, 0.5, 1]
    )
    big = torch.arange(200.0).double()
    assert torch.equal(reweight(big), reweight(big, mode="binned"))


def test_an_array_and_half_precision_scores_will_do() -> None:
    assert reweight(np.linspace(0, 1, 20)).dtype == torch.float64
    assert reweight(torch.linspace(0, 1, 20).bfloat16()).dtype == torch.float32
    assert resample([3, 1, 2], 0.0, 1.0).tolist() == [1, 2, 0]


distinct = st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=80, unique=True).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
shares = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] < pair[1])
modes = st.sampled_from(["linear", "binned"])


@settings(deadline=None, max_examples=50)
@given(distinct, shares, modes, st.randoms(use_true_random=False))
def test_weights_move_with_their_samples(scores, share, mode, random) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    weights = reweight(scores, *share, mode)
    assert torch.equal(reweight(scores[order], *share, mode), weights[order])


@settings(deadline=None, max_examples=50)
@given(distinct, shares, modes)
def test_weights_are_shares_and_full_in_the_middle(scores, share, mode) -> None:
    before = scores.clone()
    weights = reweight(scores, *share, mode)
    assert torch.equal(scores, before)
    assert ((weights >= 0) & (weights <= 1)).all()
    first, last = RankRange(*share).bounds(len(scores))
    if first < last:
        assert weights[resample(scores, *share)].eq(1).all()


@settings(deadline=None, max_examples=50)
@given(distinct, shares)
def test_a_selection_names_each_sample_at_most_once(scores, share) -> None:
    before = scores.clone()
    first, last = RankRange(*share).bounds(len(scores))
    if first == last:
        with pytest.raises(DataError, match="selects none"):
            resample(scores, *share)
        return
    kept = resample(scores, *share)
    assert torch.equal(scores, before)
    assert len(set(kept.tolist())) == len(kept) == last - first
    assert torch.equal(scores[kept], scores.sort().values[first:last])


@pytest.mark.parametrize(
    "share", [(0.9, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.0, 1.1), (0, float("nan"))]
)
@pytest.mark.parametrize("function", [resample, reweight])
def test_shares_out_of_order_are_refused(function, share) -> None:
    with pytest.raises(ConfigurationError, match="0 <= low < high <= 1"):
        function(SCORES, *share)


@pytest.mark.parametrize("function", [resample, reweight])
def test_scores_that_are_no_ranking_are_refused(function) -> None:
    with pytest.raises(DataError, match="1 of 2 scores are nan"):
        function(torch.tensor([0.0, float("nan")]))
    with pytest.raises(DataError, match=r"Scores of shape \(2, 1\)"):
        function(torch.zeros(2, 1))
    with pytest.raises(DataError, match="at least one sample"):
        function(torch.zeros(0))


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(DataError, match="selects none of 10 samples; use shares further apart"):
        resample(SCORES, 0.5, 0.55)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"mode='steps'.*linear, binned"):
        reweight(SCORES, mode="steps")
