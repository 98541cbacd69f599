"""Where logits are in what a network returns is said once, to the classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaweight import DataError, Engine
from metaweight.data import LabelledTensors, TensorLoader
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

DATA = LabelledTensors(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), [0, 1] * 6)


class Apart(nn.Module):
    """Logits under a name that is not a usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        found = self.layer(inputs)
        return {"scores": found, "half": found / 2}


def trained(of_classifier: Any, of_learner: Any) -> Tensor:
    torch.manual_seed(0)
    net, weights = Apart(), MetaWeightNet()
    classifier = WeightedClassifier(
        "classifier",
        weights="reweight",
        logits=of_classifier,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        train_data_loader=TensorLoader(DATA, 6),
    )
    learner = WeightLearner(
        "reweight",
        classifier="classifier",
        logits=of_learner,
        module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), 1.0),
        train_data_loader=TensorLoader(DATA, 6, seed=1),
    )
    Engine.bilevel(learner, classifier, train_iters=3, device="cpu").run()
    return torch.cat([p.detach().flatten() for p in weights.parameters()])


def test_the_learner_takes_over_what_the_classifier_was_told() -> None:
    torch.testing.assert_close(trained("scores", None), trained("scores", "scores"), rtol=0, atol=0)


def test_what_it_was_told_itself_goes_first() -> None:
    assert not torch.equal(trained("scores", "half"), trained("scores", "scores"))
    with pytest.raises(DataError, match="Problem 'classifier' has a network that returned"):
        trained(None, "scores")
