"""Bootstrapping losses: the target mixes the given label and the network's own prediction.

``L = -Σ_k [β t_k + (1 - β) z_k] log p_k`` with ``p = softmax(logits)``, the given label ``t`` and
``z = p`` (soft) or ``z = onehot(argmax p)`` (hard).

Source: Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", ICLR 2015
workshop (arXiv:1412.6596).
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_number

from .._label_loss import LabelLoss

Beta = float | Tensor


class SoftBootstrappingLoss(LabelLoss):
    """``β CE(p, t) + (1 - β) H(p)``: cross-entropy and, since both ``p`` have a gradient, entropy
    minimisation.

    Args:
        beta: Trust in the given labels, in [0, 1]; 0.95 in the paper. A tensor, of one number or
            one per sample, may have a graph, so that it can be learned; its range is not checked.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.
        detach: Detach the target. The second term then has no gradient, and the loss trains as
            ``β CE`` does; a warning says so.

    Raises:
        ConfigurationError: For ``beta`` outside [0, 1] or an unknown reduction.
    """

    def __init__(
        self,
        beta: Beta = 0.95,
        reduction: str = "mean",
        ignore_index: int = -1,
        detach: bool = False,
    ) -> None:
        super().__init__(reduction, ignore_index)
        self.beta = _checked_beta(type(self).__name__, beta)
        self.detach = detach
        if detach:
            warnings.warn(
                "SoftBootstrappingLoss(detach=True) has exactly the gradient of beta times "
                "cross-entropy, since p - sg(p) = 0; leave detach=False to bootstrap.",
                stacklevel=2,
            )

    def forward(
        self,
        logits: Tensor,
        labels: Any,
        beta: Beta | None = None,
        *,
        reduction: str | None = None,
    ) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            beta: In place of the module's own.
            reduction: In place of the module's own.

        Raises:
            LossError: When shapes or types do not fit.
        """
        log_p, log_p_label, kept = self.read(logits, labels)
        trust = _per_sample(self.beta if beta is None else beta, log_p_label)
        p = log_p.detach().exp() if self.detach else log_p.exp()
        entropy = -(p * log_p).sum(dim=1)
        return self.reduced(-trust * log_p_label + (1 - trust) * entropy, kept, reduction)


class HardBootstrappingLoss(LabelLoss):
    """``-β log p_t - (1 - β) log p_z`` with ``z = argmax p``; gradient ``p - β t - (1 - β) e_z``.

    Args:
        beta: Trust in the given labels, in [0, 1]; 0.8 in the paper. A tensor, of one number or
            one per sample, may have a graph, so that it can be learned; its range is not checked.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.

    Raises:
        ConfigurationError: For ``beta`` outside [0, 1] or an unknown reduction.
    """

    def __init__(self, beta: Beta = 0.8, reduction: str = "mean", ignore_index: int = -1) -> None:
        super().__init__(reduction, ignore_index)
        self.beta = _checked_beta(type(self).__name__, beta)

    def forward(
        self,
        logits: Tensor,
        labels: Any,
        beta: Beta | None = None,
        *,
        reduction: str | None = None,
    ) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,); arguments as for the soft loss."""
        log_p, log_p_label, kept = self.read(logits, labels)
        trust = _per_sample(self.beta if beta is None else beta, log_p_label)
        likeliest = log_p.max(dim=1).values
        return self.reduced(-trust * log_p_label - (1 - trust) * likeliest, kept, reduction)


def _checked_beta(who: str, beta: Beta) -> Beta:
    if not isinstance(beta, Tensor) and not is_number(beta, 0, 1):
        raise ConfigurationError(
            f"{who}(beta={beta}) is not a share of trust in the labels; give a number in [0, 1]."
        )
    return beta


def _per_sample(beta: Beta, like: Tensor) -> Beta:
    if not isinstance(beta, Tensor):
        return _checked_beta("Bootstrapping", beta)
    if beta.numel() == 1:
        return beta.reshape(()).to(like)
    if beta.shape not in (like.shape, (len(like), 1)):
        raise LossError(
            f"beta of shape {tuple(beta.shape)} was given for {len(like)} samples; give one number "
            f"or one per sample, shape ({len(like)},)."
        )
    return beta.reshape(-1).to(like)
