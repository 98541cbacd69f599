"""Cross-entropy with a margin that is larger for rarer classes, and the layer it is made for.

Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
NeurIPS 2019 (arXiv:1906.07413).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight._label_loss import LabelLoss, full_precision, labels_of, predict
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_count, is_positive

from .counts import per_class, read_positive_counts


class LDAMLoss(LabelLoss):
    """``-log softmax(s (z - Δ_y e_y))_y`` with margins ``Δ_c = m (min_k n_k / n_c)^¼``.

    Only the logit of the label is lowered by its class's margin. The paper trains with it alone
    first and then with class-balanced weights too:
    ``DeferredReweighting(LDAMLoss(counts), class_balanced_weights(counts))``.

    Args:
        counts: Samples per class ``n_c``, (C,), in a tensor, array or list, at least 1 each.
        max_margin: ``m``, the margin of the rarest class, above 0; 0.5 in the paper.
        scale: ``s``, above 0. 30 is for the cosines of a :class:`NormalisedLinear`, the network's
            last layer; for the logits of an ordinary one take 1.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.

    Raises:
        ConfigurationError: For a class without samples, a setting out of range or an unknown
            reduction.
    """

    counts: Tensor

    def __init__(
        self,
        counts: Any,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reduction: str = "mean",
        ignore_index: int = -1,
    ) -> None:
        super().__init__(reduction, ignore_index)
        if not is_positive(max_margin) or not is_positive(scale):
            raise ConfigurationError(
                f"LDAMLoss(max_margin={max_margin}, scale={scale}) is out of range; give finite "
                "numbers above 0."
            )
        self.max_margin = max_margin
        self.scale = scale
        self.register_buffer("counts", read_positive_counts("LDAMLoss", counts), persistent=False)

    def forward(self, logits: Tensor, labels: Any, *, reduction: str | None = None) -> Tensor:
        """Return the loss of logits (B, C) and labels (B,).

        Args:
            logits: (B, C), any floating type; computed in single precision or better.
            labels: (B,) classes of any integer type, or one-hot.
            reduction: In place of the module's own.

        Raises:
            LossError: When shapes or types do not fit.
        """
        read = labels_of(logits, labels, self.ignore_index)
        scores = full_precision(logits)
        counts = per_class("LDAMLoss", self.counts, scores)
        margins = self.max_margin * (counts.min() / counts) ** 0.25
        classes = torch.arange(len(counts), device=scores.device)
        lowered = torch.where(read.classes.unsqueeze(1) == classes, scores - margins, scores)
        found = predict(self.scale * lowered, read)
        return self.reduced(-found.log_p_label, read.kept, reduction)


class NormalisedLinear(nn.Module):
    """``z_c = cos(x, w_c)``: the last layer of a network trained with :class:`LDAMLoss`.

    A sample whose features are all 0 has the cosine 0 with every class, and no gradient. Rows start
    with length 1 in directions drawn evenly.

    Args:
        in_features: Number of features, at least 1.
        out_features: Number of classes, at least 1.

    Raises:
        ConfigurationError: For other numbers.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        if not is_count(in_features, least=1) or not is_count(out_features, least=1):
            raise ConfigurationError(
                f"NormalisedLinear(in_features={in_features}, out_features={out_features}) must "
                "have integers of at least 1."
            )
        self.weight = nn.Parameter(_directions(torch.randn(out_features, in_features)))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"

    def forward(self, features: Tensor) -> Tensor:
        """Return cosines in [-1, 1], (…, C), of features (…, D)."""
        return F.linear(_directions(features), _directions(self.weight))


def _directions(rows: Tensor) -> Tensor:
    """Return rows of length 1; rows of zeros stay so and have no gradient."""
    squares = full_precision(rows).square().sum(-1, keepdim=True)
    nothing = squares == 0
    # A length of 0 is replaced before the root, whose derivative there is infinite.
    unit = full_precision(rows) / squares.masked_fill(nothing, 1).sqrt()
    return unit.masked_fill(nothing, 0).to(rows.dtype)
