"""The confident joint in torch against cleanlab's, on a worked case and on random batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaweight.noise.confident_joint import (
    confident_guess,
    confident_joint,
    confident_thresholds,
    contradicted,
)

count = pytest.importorskip("cleanlab.count")

P = torch.tensor(
    [
        [0.9, 0.1, 0.0],
        [0.8, 0.1, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.8, 0.1],
        [0.05, 0.9, 0.05],
        [0.1, 0.2, 0.7],
        [0.1, 0.1, 0.8],
        [0.85, 0.1, 0.05],
    ],
    dtype=torch.float64,
)
Y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


def batch(seed: int, size: int, classes: int, sharpness: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (size,), generator=generator)
    logits[torch.arange(size), labels] += sharpness
    return logits.softmax(1), labels


def test_the_worked_case() -> None:
    thresholds = [1.9 / 3, 0.85, 1.55 / 3]
    assert confident_thresholds(P, Y).tolist() == pytest.approx(thresholds, abs=1e-12)
    assert confident_joint(P, Y).tolist() == [[2, 0, 0], [0, 1, 0], [1, 0, 2]]
    assert contradicted(P, Y).nonzero().squeeze(1).tolist() == [7]
    assert count.compute_confident_joint(Y.numpy(), P.numpy()).tolist() == [
        [3, 0, 0],
        [0, 2, 0],
        [1, 0, 2],
    ]


def test_among_several_confident_classes_the_largest_of_all_is_the_guess() -> None:
    p = torch.tensor([[0.36, 0.33, 0.31]], dtype=torch.float64)
    thresholds = torch.tensor([0.95, 0.325, 0.3], dtype=torch.float64)
    assert confident_guess(p, thresholds).tolist() == [0]
    assert contradicted(p, torch.tensor([1]), thresholds).tolist() == [True]
    # Class 1 is the largest of the confident ones: by the paper's rule the label would stand.
    assert (p >= thresholds).tolist() == [[False, True, True]]


def test_two_hundred_random_batches_agree_with_cleanlab() -> None:
    flagged = 0
    for seed in range(200):
        size, classes = 5 + 3 * (seed % 40), 2 + seed % 9
        p, y = batch(seed, size, classes, sharpness=0.5 + 0.5 * (seed % 5))
        raw, indices = count.compute_confident_joint(
            y.numpy(), p.numpy(), calibrate=False, return_indices_of_off_diagonals=True
        )
        assert contradicted(p, y).nonzero().squeeze(1).tolist() == sorted(indices), seed
        ours = confident_joint(p, y).numpy()
        off = ~torch.eye(classes, dtype=torch.bool).numpy()
        # cleanlab raises the diagonal to 1 at least.
        assert (ours[off] == raw[off]).all() and (ours.diagonal().clip(1) == raw.diagonal()).all()
        flagged += len(indices)
    assert flagged > 500, "the batches are too easy to compare anything"


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), size=st.integers(1, 30))
def test_unlabelled_rows_and_the_order_of_rows_do_not_matter(
    seed: int, classes: int, size: int
) -> None:
    p, y = batch(seed, size, classes, 1.5)
    before = p.clone(), y.clone()
    flags = contradicted(p, y)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(contradicted(p[order], y[order]), flags[order])
    more_p = torch.cat([p, torch.full((2, classes), float("nan"), dtype=p.dtype)])
    more_y = torch.cat([y, torch.tensor([-1, -1])])
    assert contradicted(more_p, more_y).tolist() == [*flags.tolist(), False, False]
    assert torch.equal(p, before[0]) and torch.equal(y, before[1])
