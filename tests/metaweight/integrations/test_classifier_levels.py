"""The weights that both doors say samples have are those that they trained with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.integrations import WeightingConfig
from metaweight.integrations.classifier_levels import classifier_levels, weights_of
from metaweight.integrations.two_levels import TwoLevels
from metaweight.weighting import ClassAwareWeightNet, MetaWeightNet

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def made_levels(loss: Any, weigher: nn.Module) -> TwoLevels:
    net, config = nn.Linear(3, 2), WeightingConfig(weigher, normalise=False)
    return classifier_levels(
        config,
        weigher,
        net,
        torch.optim.SGD(net.parameters(), 0.1),
        [(X, torch.tensor([0, 1, 0, 1, 0, 1]))],
        steps=10,
        device=torch.device("cpu"),
        precision="fp32",
        loss=loss,
    )


def levels(loss: Any, class_aware: bool) -> TwoLevels:
    torch.default_generator.manual_seed(1)
    weigher = ClassAwareWeightNet(torch.arange(2), 4) if class_aware else MetaWeightNet(4)
    for parameter in weigher.parameters():
        nn.init.normal_(parameter)
    return made_levels(loss, weigher)


@pytest.mark.parametrize("class_aware", [False, True])
@pytest.mark.parametrize(
    ("loss", "mark"),
    [(F.cross_entropy, -1), (F.cross_entropy, -100), (nn.CrossEntropyLoss(ignore_index=255), 255)],
)
def test_samples_without_a_label_weigh_nothing(loss: Any, mark: int, class_aware: bool) -> None:
    """By hand: the weights of the others, by N / N_labelled, whatever batches they come in."""
    made = levels(loss, class_aware)
    labels = torch.tensor([0, 1, mark, mark, 0, 1])
    kept = labels != mark
    logits = made.lower.module(X[kept]).detach()
    weights = made.learner.module(
        F.cross_entropy(logits, labels[kept], reduction="none"), labels[kept]
    )
    expected = torch.zeros(6)
    expected[kept] = weights.detach().reshape(-1) * 6 / 4
    for size in (6, 4, 1):
        batches = zip(X.split(size), labels.split(size), strict=True)
        torch.testing.assert_close(weights_of(made, batches), expected, rtol=1e-6, atol=1e-7)
    batch: tuple[Tensor, Tensor] = (X, labels)
    trained = made.lower.sample_weights(made.lower.sample_losses(batch).detach(), batch)
    torch.testing.assert_close(weights_of(made, [batch]), trained.detach(), rtol=1e-6, atol=1e-7)
