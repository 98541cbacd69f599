"""Losses that users give: a label that one leaves out by itself, and targets of whole numbers.

Compared with torch's own reductions, to 1e-6 by rounding of single precision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import LossError
from metaweight.noise import mixup_loss
from metaweight.weighting import (
    DeferredReweighting,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    focal_loss,
)

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Constant(nn.Module):
    def forward(self, losses: Tensor, labels: Tensor) -> Tensor:
        return torch.ones_like(losses)


def classifier(loss: Any, **settings: Any) -> WeightedClassifier:
    torch.manual_seed(1)
    made = WeightedClassifier("c", weights="w", loss=loss, module=nn.Linear(4, 3), **settings)
    made.w = Constant()
    return made


def mean_of(problem: WeightedClassifier, batch: Any) -> Tensor:
    losses = problem.sample_losses(batch)
    return (problem.sample_weights(losses.detach(), batch) * losses).mean()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("ignored", [0, 2, 255, np.int64(255), np.uint8(2)])
def test_a_label_that_the_loss_leaves_out_counts_nowhere(ignored: int, normalise: bool) -> None:
    labels = torch.tensor([1, 0, int(ignored), 2, int(ignored)])
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    lower = classifier(loss, normalise=normalise)
    logits = lower.module(X)
    expected = F.cross_entropy(logits, labels, ignore_index=int(ignored))
    torch.testing.assert_close(mean_of(lower, (X, labels)), expected, rtol=1e-6, atol=1e-6)
    upper = WeightLearner("w", classifier="c", loss=loss, module=MetaWeightNet(3))
    upper.c = lower.module
    torch.testing.assert_close(upper.training_step((X, labels)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ignored", [0, 255])
def test_mixtures_of_a_label_that_is_left_out(ignored: int) -> None:
    labels = torch.tensor([1, 0, ignored, 2, ignored])
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    found = mixup_loss(X[:, :3], labels, labels, torch.tensor(0.3), criterion=loss)
    torch.testing.assert_close(found, loss(X[:, :3], labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ignored", [0, 255])
def test_deferred_weights_of_a_label_that_is_left_out(ignored: int) -> None:
    labels, weights = torch.tensor([1, 0, ignored, 2, ignored]), torch.tensor([3.0, 1.0, 2.0])
    loss = DeferredReweighting(nn.CrossEntropyLoss(ignore_index=ignored), weights)
    loss.switch()
    expected = F.cross_entropy(X[:, :3], labels, weights, ignore_index=ignored)
    torch.testing.assert_close(loss(X[:, :3], labels), expected, rtol=1e-6, atol=1e-6)


def test_a_label_that_no_one_leaves_out_is_refused() -> None:
    lower = classifier(nn.CrossEntropyLoss(ignore_index=255))
    with pytest.raises(LossError, match="254"):
        lower.sample_losses((X, torch.tensor([1, 0, 254, 2, 255])))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("name", ["module", "function"])
def test_whole_targets_of_torchs_losses_are_numbers(dtype: torch.dtype, name: str) -> None:
    targets = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]]).to(dtype)
    loss = nn.BCEWithLogitsLoss() if name == "module" else F.binary_cross_entropy_with_logits
    upper = WeightLearner("w", classifier="c", loss=loss, module=MetaWeightNet(3))
    upper.c = nn.Linear(4, 3)
    expected = F.binary_cross_entropy_with_logits(upper.c(X), targets.float())
    torch.testing.assert_close(upper.training_step((X, targets)), expected, rtol=1e-6, atol=1e-6)


def test_whole_targets_of_a_partial_loss_are_numbers() -> None:
    targets = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]])
    more = {"pos_weight": torch.tensor([1.0, 2.0, 3.0])}
    loss = partial(F.binary_cross_entropy_with_logits, **more)
    upper = WeightLearner("w", classifier="c", loss=loss, module=MetaWeightNet(3))
    upper.c = nn.Linear(4, 3)
    expected = F.binary_cross_entropy_with_logits(upper.c(X), targets.float(), **more)
    torch.testing.assert_close(upper.training_step((X, targets)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_focal_loss_is_of_single_precision(dtype: torch.dtype) -> None:
    """At gamma 0 it is the cross-entropy, which 16 bits round to 0 here."""
    logits = torch.tensor([[11.0, 0.0, 0.0]], dtype=dtype)
    expected = F.cross_entropy(logits.float(), torch.tensor([0]))
    found = focal_loss(logits, torch.tensor([0]), gamma=0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def mean_of_batch(loss: Any, outputs: Tensor, labels: Tensor) -> Tensor:
    upper = WeightLearner("w", classifier="c", loss=loss, module=MetaWeightNet(3))
    upper.c = nn.Identity()
    return upper.training_step((outputs, labels))


COLUMN, NUMBERS = X[:, :1], X[:, 1]


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (squares, r"returned shape \(5, 5\) for 5 samples; give one that returns one number per"),
        (nn.MSELoss(), r"outputs of shape \(5, 1\) for labels of shape \(5,\), of which the loss"),
        (F.l1_loss, "compare each with each; give both one shape, such as outputs.squeeze"),
        (nn.BCEWithLogitsLoss(), "compare each with each; give both one shape"),
    ],
)
def test_samples_are_not_compared_each_with_each(loss: Any, said: str) -> None:
    with pytest.raises(LossError, match=said):
        mean_of_batch(loss, COLUMN, NUMBERS)


@pytest.mark.parametrize("loss", [squares, nn.MSELoss(), nn.MSELoss(reduction="none")])
def test_losses_of_numbers_of_one_shape_are_means(loss: Any) -> None:
    """Also of several numbers a sample."""
    labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for one, other in ((COLUMN, labels[:, :1]), (X, labels), (NUMBERS, labels[:, 1])):
        expected = (one - other).square().mean()
        torch.testing.assert_close(mean_of_batch(loss, one, other), expected)


def test_losses_of_tokens_are_means() -> None:
    logits = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(35).reshape(5, 7) % 3
    found = mean_of_batch(nn.CrossEntropyLoss(reduction="none"), logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))
