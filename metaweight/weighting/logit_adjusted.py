"""Cross-entropy of logits that are shifted by the frequency of their classes.

Sources: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (arXiv:2007.07314); Ren
et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020 (arXiv:2007.10740),
whose Balanced Softmax is the case τ = 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metaweight._label_loss import LabelLoss, full_precision, labels_of, predict
from metaweight.problems.base.settings import require_number

from .counts import per_class, read_positive_counts


class LogitAdjustedLoss(LabelLoss):
    """``-log softmax(z + τ log π)_y`` with the shares ``π_c = n_c / Σ_k n_k`` of the classes.

    It trains logits whose plain ``argmax`` has the least balanced error, so that at test time
    nothing is added to them.

    Args:
        counts: Samples per class ``n_c``, (C,), in a tensor, array or list, at least 1 each.
        tau: ``τ``, at least 0: 1 is Balanced Softmax and consistent with the balanced error, 0 is
            cross-entropy.
        reduction: ``"none"``, ``"mean"`` (over the labels that count) or ``"sum"``.
        ignore_index: Label, beside -1 and -100, whose samples are left out.

    Raises:
        ConfigurationError: For a class without samples, a negative ``tau`` or an unknown reduction.
    """

    counts: Tensor

    def __init__(
        self, counts: Any, tau: float = 1.0, reduction: str = "mean", ignore_index: int = -1
    ) -> None:
        super().__init__(reduction, ignore_index)
        require_number("LogitAdjustedLoss", "tau", tau, advice="1 is Balanced Softmax")
        self.tau = tau
        given = read_positive_counts("LogitAdjustedLoss", counts)
        self.register_buffer("counts", given, persistent=False)

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
        counts = per_class("LogitAdjustedLoss", self.counts, scores)
        found = predict(scores + self.tau * (counts / counts.sum()).log(), read)
        return self.reduced(-found.log_p_label, read.kept, reduction)
