"""Learned mappings from ensemble scores to sample weights, modules for an upper problem.

With the score ``s_ik`` of sample i by member k, kept fixed::

    MemberMixture:     m_i = Σ_k softmax(a)_k s_ik
    MixtureWeightNet:  w_i = link(m_i),          by default exp(-m_i)
    ScoreWeightNet:    w_i = sigmoid(MLP(s_i1, …, s_iK))

``MixtureWeightNet`` learns how much to trust each member, one number per member. ``ScoreWeightNet``
learns a weight as a function of the scores, as Meta-Weight-Net (Shu et al., NeurIPS 2019,
arXiv:1902.07379) does for losses; but scores do not change while the classifier memorises a wrong
label.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_count
from metaweight.weighting.meta_weight_net import rated, weight_mlp


def confidence(scores: Tensor) -> Tensor:
    """Return ``exp(-s)``: for cross-entropy scores the geometric mean of the probabilities that the
    members give the label; in (0, 1] for scores of at least 0."""
    return torch.exp(-scores)


class MemberMixture(nn.Module):
    """``m_i = Σ_k softmax(a)_k s_ik``, initially the plain mean over members.

    Args:
        members: K, at least 1.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        require_members(members)
        self.logits = nn.Parameter(torch.zeros(members))

    @property
    def shares(self) -> Tensor:
        """``softmax(a)``, shape (K,)."""
        return torch.softmax(self.logits, dim=0)

    def forward(self, scores: Tensor) -> Tensor:
        """Return one score per sample, (B,), of scores (B, K), or (B,) for a single member.

        Raises:
            LossError: For another number of members.
        """
        columns = score_columns(scores, len(self.logits))
        return columns @ self.shares.to(columns.dtype)


class MixtureWeightNet(nn.Module):
    """``w_i = link(Σ_k softmax(a)_k s_ik)``: a weight per sample, K numbers to learn.

    Args:
        members: K.
        link: Differentiable mapping from scores to weights, elementwise and falling.
    """

    def __init__(self, members: int, link: Callable[[Tensor], Tensor] = confidence) -> None:
        super().__init__()
        self.mixture = MemberMixture(members)
        self._link = link

    def forward(self, scores: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return weights (B,) of scores (B, K); ``classes`` are ignored."""
        del classes
        return self._link(self.mixture(scores))


class ScoreWeightNet(nn.Module):
    """``w_i = sigmoid(MLP(s_i1, …, s_iK))``: a weight in (0, 1) per sample.

    Args:
        members: K; 1 for scores that are already summed over members.
        hidden_size: Width of the hidden layers.
        num_layers: Hidden layers.
    """

    def __init__(self, members: int = 1, hidden_size: int = 100, num_layers: int = 1) -> None:
        super().__init__()
        require_members(members)
        self.members = members
        self.layers = weight_mlp(members, hidden_size, num_layers)

    def forward(self, scores: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return weights (B,) of scores (B, K), or (B,) for K = 1; ``classes`` are ignored.

        Raises:
            LossError: For another number of members.
        """
        del classes
        return torch.sigmoid(rated(self.layers, score_columns(scores, self.members))).squeeze(1)


def score_columns(scores: Tensor, members: int) -> Tensor:
    """Return scores (B, K), or (B,) of a single member, as (B, K).

    Raises:
        LossError: For another shape.
    """
    columns = scores.reshape(-1, 1) if scores.ndim == 1 else scores
    if columns.ndim != 2 or columns.shape[1] != members:
        raise LossError(
            f"A weight network for {members} members received scores of shape "
            f"{tuple(scores.shape)}; give one score per sample and member, (B, {members}), as "
            "member_scores() does, or build the network for as many members as there are."
        )
    return columns


def require_members(members: int) -> None:
    """Refuse a network for no members.

    Raises:
        ConfigurationError: Saying what to give.
    """
    if not is_count(members, least=1):
        raise ConfigurationError(
            f"A weight network for members={members} was asked for; give the number of members of "
            "the ensemble, at least 1."
        )
