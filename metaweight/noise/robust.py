"""Losses that are robust to wrong labels: generalised and symmetric cross-entropy.

Sources: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
Noisy Labels", NeurIPS 2018 (arXiv:1805.07836); Wang et al., "Symmetric Cross Entropy for Robust
Learning with Noisy Labels", ICCV 2019 (arXiv:1908.06112).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_number, is_part

from .._label_loss import LabelLoss


class GeneralisedCrossEntropy(LabelLoss):
    """``(1 - p_y^q) / q``: cross-entropy as ``q → 0``, the mean absolute error at ``q = 1``.

    Args:
        q: In [0, 1]; 0.7 in the paper.
        truncation: ``k``: samples with ``p_y ≤ k`` have the constant loss ``(1 - k^q) / q`` and no
            gradient, the paper's truncated loss (it takes 0.5). 0 truncates nothing.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.

    Raises:
        ConfigurationError: For a setting out of range or an unknown reduction.
    """

    def __init__(
        self,
        q: float = 0.7,
        truncation: float = 0.0,
        reduction: str = "mean",
        ignore_index: int = -1,
    ) -> None:
        super().__init__(reduction, ignore_index)
        if not is_number(q, 0, 1) or not is_part(truncation):
            raise ConfigurationError(
                f"GeneralisedCrossEntropy(q={q}, truncation={truncation}) is out of range; give q "
                "in [0, 1] and truncation in [0, 1)."
            )
        self.q = q
        self.truncation = truncation

    def forward(self, logits: Tensor, labels: Any, *, reduction: str | None = None) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            reduction: In place of the module's own.
        """
        _, log_p, kept = self.read(logits, labels)
        if self.truncation:
            log_p = log_p.clamp_min(math.log(self.truncation))
        # expm1 keeps its digits where p_y^q is close to 1, as it is for a small q.
        losses = -torch.expm1(self.q * log_p) / self.q if self.q else -log_p
        return self.reduced(losses, kept, reduction)


class SymmetricCrossEntropy(LabelLoss):
    """``α CE(t, p) + β CE(p, t)``; in the second ``log 0`` is the constant ``A``, so that it is
    ``-A (1 - p_y)``.

    Args:
        alpha: Weight of cross-entropy, at least 0.
        beta: Weight of the reverse cross-entropy, at least 0.
        log_zero: ``A``, below 0.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.

    Raises:
        ConfigurationError: For a setting out of range or an unknown reduction.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = -4.0,
        reduction: str = "mean",
        ignore_index: int = -1,
    ) -> None:
        super().__init__(reduction, ignore_index)
        if not (
            is_number(alpha, 0) and is_number(beta, 0) and is_number(log_zero) and log_zero < 0
        ):
            raise ConfigurationError(
                f"SymmetricCrossEntropy(alpha={alpha}, beta={beta}, log_zero={log_zero}) is out of "
                "range; give finite weights of at least 0 and a finite log_zero below 0."
            )
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero

    def forward(self, logits: Tensor, labels: Any, *, reduction: str | None = None) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            reduction: In place of the module's own.
        """
        _, log_p, kept = self.read(logits, labels)
        reverse = self.log_zero * torch.expm1(log_p)
        return self.reduced(-self.alpha * log_p + self.beta * reverse, kept, reduction)
