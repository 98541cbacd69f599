"""Steps and hypergradients of a weighted language model, against its loss token by token.

Both are in float64: forward mode and a step agree to rounding, 1e-9 with room; a central difference
of length 1e-4 has an error of order 1e-8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.language import TinyLM, padded_batch
from support.naive_language import assert_as_naive

from metaweight import Reweighting


def model(**settings: Any) -> TinyLM:
    torch.manual_seed(0)
    return TinyLM(**settings).double()


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("level", ["source", "sequence", "token"])
def test_levels_and_averages(level: Any, average: Any) -> None:
    assert_as_naive(model(), [padded_batch(1)], level=level, average=average)


@pytest.mark.parametrize("level", ["source", "token"])
def test_three_micro_batches(level: Any) -> None:
    batches = [padded_batch(i) for i in range(3)]
    assert_as_naive(model(tied=True), batches, level=level, accumulation=3)


@pytest.mark.parametrize("level", ["source", "sequence", "token"])
def test_passes_of_two_sequences_are_a_whole_batch(level: Any) -> None:
    batch = padded_batch(1, size=5)
    assert_as_naive(model(tied=True), [batch], level=level, micro_batch_size=2)


def test_padding_on_the_left() -> None:
    assert_as_naive(model(), [padded_batch(2, left=True)], level="sequence")


def test_a_central_difference() -> None:
    method = Reweighting(alpha=1e-4)
    assert_as_naive(model(), [padded_batch(3)], level="sequence", method=method, tolerance=1e-6)


def test_a_proposal_divides_weights() -> None:
    batch = padded_batch(4) | {"proposal": torch.rand(6, dtype=torch.float64) + 0.5}
    assert_as_naive(model(), [batch])


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("micro", [None, 4])
def test_a_rater_that_knows_a_reference(width: int, micro: int | None) -> None:
    batch = padded_batch(5) | {"reference_loss": 2 + torch.rand(6, dtype=torch.float64)}
    settings: dict[str, Any] = {"level": "sequence", "width": width, "micro_batch_size": micro}
    assert_as_naive(model(), [batch], reference=(2.5, 0.5), **settings)
