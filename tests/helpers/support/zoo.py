"""Problems that many tests share, by what they compute, and programs of two levels of them.

A problem finds its peers by name; the attributes ``below`` and ``above`` say which.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Engine, EngineConfig, ImplicitProblem, Problem, ReweightedProblem


class Classifier(ImplicitProblem):
    """Cross-entropy of its own network."""

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self.module(batch[0]), batch[1])


class Judge(ImplicitProblem):
    """Cross-entropy of the network below."""

    below = "lower"

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(getattr(self, self.below)(batch[0]), batch[1])


class Weighed(ReweightedProblem):
    """Cross-entropies of samples, each with the weight that the problem above gives its loss."""

    above = "upper"

    def sample_losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        weights: Tensor = getattr(self, self.above)(losses)
        return weights


class ColumnWeighed(Weighed):
    """The same, for a network of weights whose inputs have a column."""

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return super().sample_weights(losses.unsqueeze(1), batch)


class WeighedNumber(ReweightedProblem):
    """``½ (w - batch)²``, weighed by ``sigmoid(θ₀ + θ₁ loss)``."""

    def sample_losses(self, batch: Any) -> Tensor:
        return 0.5 * (self.module.w - batch) ** 2

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        theta = self.judge.module.w
        return torch.sigmoid(theta[0] + theta[1] * losses)


class NumberJudge(ImplicitProblem):
    """``½ (w - 2)²`` of the number below."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * (self.classifier.module.w - 2).pow(2).sum()


def over(
    upper: Problem, lower: Problem, *, engine: type[Engine] = Engine, hooks: Any = (), **config: Any
) -> Any:
    """An engine of one problem over another, whose parameters enter each other's losses."""
    return engine(
        [upper, lower],
        EngineConfig(**({"strategy": "cpu"} | config)),
        {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
        hooks=hooks,
    )


class FlippedGroup:
    """Samples of a linear rule in two groups, the labels of one flipped, and clean samples.

    Attributes:
        x: The 100 samples, ``(100, 5)``.
        labels: Their labels, 60 of them flipped: learning from all is worse than guessing.
        group: 1 for a sample whose label is flipped.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
        y = (x @ torch.randn(5, generator=generator, dtype=torch.float64) > 0).double()
        self.x, self._clean_x, self._clean_y = x[:100], x[100:], y[100:]
        self.group = (torch.arange(100) < 60).long()
        self.labels = torch.where(self.group == 1, 1 - y[:100], y[:100])

    def losses(self, w: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.x @ w, self.labels, reduction="none")

    def error(self, w: Tensor) -> Tensor:
        """The error rate on clean samples, which has no derivative."""
        return ((self._clean_x @ w.detach() > 0).double() != self._clean_y).double().mean()
