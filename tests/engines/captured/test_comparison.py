"""What of a difference is rounding."""

from __future__ import annotations

import math

import pytest
import torch
from metaweight.engines.captured.comparison import ALLOWANCE, NUDGE, by_rounding
from metaweight.engines.captured.program_tensors import Kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_smooth_step_is_moved_by_the_roundings_of_its_start_alone(dtype: torch.dtype) -> None:
    """From ones to one and a half: a start that is ``NUDGE`` roundings off ends so far off."""
    state = torch.ones(8, dtype=dtype)
    kept = {"state": [state]}
    start = Kept.of(kept)
    state.add_(0.5)
    found = by_rounding(lambda: state.add_(0.5), start, Kept.of(kept))["state"]
    expected = ALLOWANCE * NUDGE * torch.finfo(dtype).eps / 0.5
    assert found == pytest.approx(expected, rel=0.01)


def test_a_kink_is_seen() -> None:
    """A step of one up or down, by the last digit of the state."""
    state = torch.ones(8)
    kept = {"state": [state]}
    start = Kept.of(kept)

    def run() -> None:
        state.add_(torch.where(state >= 1, 1.0, -1.0))

    run()
    assert by_rounding(run, start, Kept.of(kept))["state"] > ALLOWANCE


def test_what_is_not_finite_is_not_excused() -> None:
    state = torch.ones(8)
    kept = {"state": [state]}
    start = Kept.of(kept)
    state.fill_(torch.nan)
    found = by_rounding(lambda: state.fill_(torch.inf), start, Kept.of(kept))
    assert found == {"state": 0.0}


def test_what_is_not_finite_in_both_has_not_gone_apart() -> None:
    """A run that diverges may end at another of these, by a rounding."""
    state = torch.ones(3)
    kept = {"state": [state]}
    start = Kept.of(kept)
    state[0], state[1] = torch.nan, torch.inf
    assert Kept.of(kept).shares(Kept.of(kept), start) == {"state": 0.0}
    other = Kept.of(kept)
    state[1] = torch.nan
    assert Kept.of(kept).shares(other, start) == {"state": 0.0}
    state.fill_(1.0)
    assert Kept.of(kept).shares(other, start) == {"state": math.inf}
    assert other.shares(Kept.of(kept), start) == {"state": math.inf}


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_ways_are_measured_at_any_size(size: float) -> None:
    """From 0 to 2, and to 2.2: a tenth of the way, whatever the unit is; to 1e-12 by rounding."""
    state = torch.zeros(3, dtype=torch.float64)
    kept = {"state": [state]}
    start = Kept.of(kept)
    state.fill_(2 * size)
    expected = Kept.of(kept)
    state.fill_(2.2 * size)
    share = Kept.of(kept).shares(expected, start)["state"]
    assert share == pytest.approx(0.1 if size >= 1 else 0.0, rel=1e-12)


def test_a_kink_excuses_what_it_moves_alone() -> None:
    low, high = torch.ones(4), torch.ones(4)
    kept = {"low": [low], "high": [high]}
    start = Kept.of(kept)

    def run() -> None:
        low.add_(torch.where(low >= 1, 1.0, -1.0))
        high.add_(0.5)

    run()
    excused = by_rounding(run, start, Kept.of(kept))
    assert excused["low"] > 1
    assert excused["high"] < 1e-4


def test_whole_numbers_flags_and_counts_are_left_as_they_are() -> None:
    given = [torch.tensor([1, 2]), torch.tensor([True, False]), torch.zeros(2), torch.tensor(7.0)]
    start = Kept.of({"state": given})
    start.restore(roundings=1e6)
    assert [t.tolist() for t in given] == [[1, 2], [True, False], [0.0, 0.0], 7.0]


@pytest.mark.parametrize("constant", [-torch.inf, torch.nan])
def test_an_endless_constant_hides_nothing(constant: float) -> None:
    """As the buffer of an attention mask: what stays so is no divergence of the rest."""
    mask, state = torch.full((2,), constant), torch.zeros(3)
    mask[0] = 0.0
    kept = {"module": [mask, state]}
    start = Kept.of(kept)
    state.fill_(2.0)
    expected = Kept.of(kept)
    state.fill_(3.0)
    assert Kept.of(kept).shares(expected, start)["module"] == pytest.approx(0.5)
    state.fill_(2.0)
    mask[0] = 1.0
    assert Kept.of(kept).shares(expected, start)["module"] > 0.2


def test_a_start_that_is_endless_is_no_way() -> None:
    state = torch.full((2,), torch.inf)
    kept = {"state": [state]}
    start = Kept.of(kept)
    state.fill_(2.0)
    expected = Kept.of(kept)
    state.fill_(3.0)
    assert Kept.of(kept).shares(expected, start)["state"] == pytest.approx(0.5)
