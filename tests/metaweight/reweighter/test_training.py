"""The parts of the training."""

from __future__ import annotations

import pytest

from metaweight.reweighter.training import one_cycle


def test_one_cycle_rises_for_a_fifth_and_falls_to_nothing() -> None:
    shares = [one_cycle(step, 10) for step in range(11)]
    # Two steps up, and nine from the top to the step behind the last.
    assert shares[:3] == pytest.approx([0.5, 8 / 9 + 1 / 9, 8 / 9])
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert 0 < shares[9] < 0.2
    assert shares[10] == 0
