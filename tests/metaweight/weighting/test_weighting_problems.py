"""The ready-made bilevel program: its hypergradient by hand, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.zoo import over
from torch import Tensor, nn

from metaweight import Config, ImplicitProblem, Reweighting
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner


class Number(nn.Module):
    """One parameter, as the prediction for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x))


class Affine(nn.Module):
    """``sigmoid(θ0 + θ1 l)``."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, losses: Tensor, classes: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.theta[0] + self.theta[1] * losses)


def half_square(prediction: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = 0.5 * (prediction - target) ** 2
    return losses if reduction == "none" else losses.mean()


LOWER = (torch.zeros(2), torch.tensor([1.0, -3.0], dtype=torch.float64))
UPPER = (torch.zeros(1), torch.tensor([2.0], dtype=torch.float64))


def hypergradient(classifier: Any) -> list[float]:
    """One step of each level; with an upper learning rate of 1 the move is the hypergradient."""
    affine = Affine()
    learner = WeightLearner(
        "weights",
        classifier="classifier",
        loss=half_square,
        module=affine,
        optimizer=torch.optim.SGD(affine.parameters(), lr=1.0),
        train_data_loader=[UPPER],
    )
    over(learner, classifier, train_iters=1).run()
    assert classifier.module.w.item() == pytest.approx(-0.05, abs=1e-12)
    return [-value for value in affine.theta.tolist()]


def parts() -> dict[str, Any]:
    number = Number()
    return {
        "module": number,
        "optimizer": torch.optim.SGD(number.parameters(), lr=0.1),
        "train_data_loader": [LOWER],
    }


# By hand: l = (0.5, 4.5), V = 1/2 everywhere, l' = (w - 1, w + 3), so the lower gradient at w = 0
# is (-1 + 3) / 4 = 1/2 and w' = -0.05. There v = w' - 2 and l = 0.5 (w' - y)².
W = -0.05
V = W - 2.0
SLOPES = (W - 1.0, W + 3.0)
LOSSES = tuple(0.5 * slope**2 for slope in SLOPES)
# ∂V/∂θ0 = V (1 - V) = 1/4, ∂V/∂θ1 = l / 4.
DETACHED = [
    -V * sum(slope / 4 for slope in SLOPES) / 2,
    -V * sum(slope * loss / 4 for slope, loss in zip(SLOPES, LOSSES, strict=True)) / 2,
]
# A displacement of w also moves the l inside V: ∂/∂w of l²/4 is l l' / 2, twice as much; the
# difference is exact for θ0, and has an error of third order for θ1.
THROUGH = [DETACHED[0], 2 * DETACHED[1]]


def test_the_values_worked_out_are_those_of_the_literature() -> None:
    assert pytest.approx([0.486875, 3.140952], abs=1e-6) == DETACHED
    assert pytest.approx([0.486875, 6.281953], abs=1e-4) == THROUGH


def test_a_weighted_classifier_has_the_gradient_that_respects_the_stop() -> None:
    exact = Config(type=Reweighting(derivative="forward_mode"))
    classifier = WeightedClassifier(
        "classifier", exact, weights="weights", loss=half_square, **parts()
    )
    assert hypergradient(classifier) == pytest.approx(DETACHED, abs=1e-12)


def test_its_default_is_that_up_to_the_error_of_a_central_difference() -> None:
    classifier = WeightedClassifier("classifier", weights="weights", loss=half_square, **parts())
    first, second = hypergradient(classifier)
    assert first == pytest.approx(DETACHED[0], abs=1e-9)
    # Losses are quadratic in w: the derivative is exact, the loss itself off by eps² / 2 with
    # eps = alpha = 0.01, in each of the terms slope * eps² / 2 / 4, summed and halved, times -v.
    error = -V * sum(slope * 0.01**2 / 2 / 4 for slope in SLOPES) / 2
    assert second == pytest.approx(DETACHED[1] + error, abs=1e-9)


def test_a_plain_problem_with_darts_differentiates_through_the_detached_losses() -> None:
    class Plain(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            x, y = batch
            losses = half_square(self.module(x), y, reduction="none")
            return (self.weights(losses.detach()) * losses).mean()

    first, second = hypergradient(Plain("classifier", Config(type="darts"), **parts()))
    assert first == pytest.approx(0.486875, abs=1e-9)
    # The gradient of l²/4 in θ1 is a polynomial of degree four in w: the difference adds
    # eps² / 6 times its third derivative 3 l' / 4 * ..., worked out exactly here.
    eps = 0.01

    def gradient(w: float) -> float:
        return sum((0.5 * (w - y) ** 2) ** 2 / 4 for y in (1.0, -3.0)) / 2

    difference = (gradient(W + eps) - gradient(W - eps)) / (2 * eps)
    assert second == pytest.approx(-V * difference, abs=1e-9)
    assert second == pytest.approx(6.281953, abs=1e-6)


def test_normalised_weights_divide_by_their_mean() -> None:
    classifier = WeightedClassifier(
        "classifier", weights="weights", normalise=True, loss=half_square, **parts()
    )
    learner = WeightLearner(
        "weights",
        classifier="classifier",
        loss=half_square,
        module=(affine := Affine()),
        optimizer=torch.optim.SGD(affine.parameters(), lr=1.0),
        train_data_loader=[UPPER],
    )
    engine = over(learner, classifier, train_iters=1)
    engine.run()
    # All weights equal 1/2, so after normalising the gradient is the plain mean (-1 + 3) / 2 = 1.
    assert classifier.module.w.item() == pytest.approx(-0.1, abs=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_wrong_labels_learn_smaller_weights_than_right_ones(normalise: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator)
    truth = (x[:, 0] > 0).long()
    wrong = (torch.rand(200, generator=generator) < 0.8) & (truth == 1)
    given = torch.where(wrong, 1 - truth, truth)
    clean_x = torch.randn(40, 2, generator=generator)
    clean = (clean_x, (clean_x[:, 0] > 0).long())
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net, weights = nn.Linear(2, 2), MetaWeightNet(16)
    classifier = WeightedClassifier(
        "classifier",
        weights="reweight",
        normalise=normalise,
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[(x, given)],
    )
    reweight = WeightLearner(
        "reweight",
        classifier="classifier",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=0.05),
        train_data_loader=[clean],
    )
    over(reweight, classifier, train_iters=120).run()
    with torch.no_grad():
        learned = weights(F.cross_entropy(net(x), given, reduction="none"))
    assert learned[wrong].mean() < 0.8 * learned[~wrong].mean()
