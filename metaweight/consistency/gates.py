"""Modules by which an upper problem learns weights of unlabelled samples, or a threshold.

Each is a module from :class:`UnlabelledFeatures` to weights (B_u,) of at least 0: the ``v_i`` in
``(1/B_u) Σ_i v_i S_i``. An upper problem with one of them as its module learns it through the
student's steps; see :func:`~metaweight.consistency.learn_sample_weights`.

Sources: per sample by a network: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379),
there for labelled samples; one weight for each unlabelled sample: Ren et al., "Not All Unlabeled
Data are Equal", NeurIPS 2020 (arXiv:2007.01293).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_between, is_count, is_positive

from .._places import read_places
from ..weighting.meta_weight_net import rated, weight_mlp


class UnlabelledFeatures(NamedTuple):
    """Features of the unlabelled samples of a step, without a graph."""

    loss: Tensor
    """Divergence ``S_i``, (B_u,)."""

    confidence: Tensor
    """Largest probability of the target, (B_u,), in (0, 1]."""

    agreement: Tensor
    """``1 - ½ Σ_c |p_c - q_c|`` between student and target, (B_u,), in [0, 1]."""

    predicted: Tensor
    """Class of the target, (B_u,), int64."""

    indices: Tensor | None
    """Positions of the samples, (B_u,), where their loader gives them."""


class LearnedConsistencyWeight(nn.Module):
    """``v_i = softplus(s)``: one weight for all samples.

    Args:
        initial: The weight at the start, above 0.
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if not is_positive(initial):
            raise ConfigurationError(
                f"LearnedConsistencyWeight(initial={initial}) is not a value of a softplus; give a "
                "finite number above 0."
            )
        # The inverse of softplus, in a form that does not overflow.
        self.s = nn.Parameter(torch.tensor(initial + math.log(-math.expm1(-initial))))

    @property
    def weight(self) -> Tensor:
        """The weight, one number."""
        return F.softplus(self.s)

    def forward(self, features: UnlabelledFeatures) -> Tensor:
        """Return the weight of each sample, (B_u,)."""
        return self.weight.expand(features.loss.shape)


class LearnedThreshold(nn.Module):
    """``v_i = sigmoid((max_c q_c - τ) / k)``, a confidence threshold ``τ = sigmoid(t)`` made soft.

    Use it with a method of ``threshold=None``.

    Args:
        initial: ``τ`` at the start, in (0, 1).
        temperature: ``k`` above 0: a sample this much above the threshold has weight 0.73.
        classes: Number of predicted classes, to learn a threshold for each; ``None`` learns one
            threshold for all.
    """

    def __init__(
        self, initial: float = 0.8, temperature: float = 0.05, classes: int | None = None
    ) -> None:
        super().__init__()
        if not is_between(initial, 0, 1):
            raise ConfigurationError(
                f"LearnedThreshold(initial={initial}) is not a value of a sigmoid; give a number "
                "strictly between 0 and 1."
            )
        if not is_positive(temperature):
            raise ConfigurationError(
                f"LearnedThreshold(temperature={temperature}) is not a width of a threshold; give "
                "a finite number above 0."
            )
        if classes is not None and not is_count(classes, least=1):
            raise ConfigurationError(
                f"LearnedThreshold(classes={classes}) has no threshold; give the number of "
                "classes, or None for one threshold."
            )
        self.temperature = temperature
        self.t = nn.Parameter(torch.full((classes or 1,), math.log(initial / (1 - initial))))

    @property
    def threshold(self) -> Tensor:
        """``τ``, (1,) or one per class."""
        return torch.sigmoid(self.t)

    def forward(self, features: UnlabelledFeatures) -> Tensor:
        """Return the weight of each sample, (B_u,)."""
        threshold = self.threshold
        if len(threshold) > 1:
            threshold = threshold[features.predicted]
        return torch.sigmoid((features.confidence - threshold) / self.temperature)


class UnlabelledWeightNet(nn.Module):
    """``v_i = sigmoid(MLP(log(1 + S_i), confidence, agreement))``.

    Args:
        hidden_size: Width of the hidden layers.
        num_layers: Hidden layers.
        initial: The weight of every sample at the start, in (0, 1).
    """

    def __init__(self, hidden_size: int = 32, num_layers: int = 1, initial: float = 0.5) -> None:
        super().__init__()
        if not is_between(initial, 0, 1):
            raise ConfigurationError(
                f"UnlabelledWeightNet(initial={initial}) is not a value of a sigmoid; give a "
                "number strictly between 0 and 1."
            )
        self.layers = weight_mlp(3, hidden_size, num_layers)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(initial / (1 - initial)))

    def forward(self, features: UnlabelledFeatures) -> Tensor:
        """Return the weight of each sample, (B_u,)."""
        # Centred, since in raw form two of them hardly leave the neighbourhood of 1.
        columns = (
            features.loss.log1p(),
            2 * features.confidence - 1,
            2 * features.agreement - 1,
        )
        return torch.sigmoid(rated(self.layers, torch.stack(columns, dim=1))).squeeze(1)


class SampleWeightTable(nn.Module):
    """``v_i = sigmoid(s_i)``: a weight of its own for every sample of the unlabelled pool.

    The unlabelled loader has to give positions, as ``TensorLoader(with_indices=True)`` does.

    Args:
        samples: Size of the pool.
        initial: The weight of every sample at the start, in (0, 1).
    """

    def __init__(self, samples: int, initial: float = 0.5) -> None:
        super().__init__()
        if not is_count(samples, least=1) or not is_between(initial, 0, 1):
            raise ConfigurationError(
                f"SampleWeightTable(samples={samples}, initial={initial}): give at least 1 sample "
                "and a weight strictly between 0 and 1."
            )
        self.s = nn.Parameter(torch.full((samples,), math.log(initial / (1 - initial))))

    def forward(self, features: UnlabelledFeatures) -> Tensor:
        """Return the weight of each sample, (B_u,).

        Raises:
            DataError: When the batch has no positions, or, on the host, none of this table.
        """
        number = len(self.s)
        places = read_places(
            "SampleWeightTable",
            features.indices,
            number,
            size=len(features.loss),
            table=f"samples={number}",
        )
        return torch.sigmoid(self.s.index_select(0, places.to(self.s.device)))
