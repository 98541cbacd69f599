"""Weights from class sizes alone.

Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019
(arXiv:1901.05555).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_number

from .counts import beside, read_counts


def class_balanced_weights(counts: Any, beta: float = 0.9999) -> Tensor:
    """Return ``(1 - β) / (1 - β^n_c)`` per class, scaled to mean 1 over the classes.

    Args:
        counts: Samples per class ``n_c``, (C,), in a tensor, array or list. A class without
            samples gets weight 0.
        beta: In [0, 1]; 0 gives equal weights, 1 inverse frequency (the limit).

    Raises:
        ConfigurationError: For ``beta`` outside [0, 1], for counts that are not one number of at
            least 0 per class, or no sample at all.
    """
    n = read_counts("class_balanced_weights", counts)
    if not is_number(beta, 0, 1) or n.sum() == 0:
        raise ConfigurationError(
            f"class_balanced_weights(beta={beta}) with {int(n.sum())} samples needs beta in "
            "[0, 1] and at least one sample."
        )
    effective = n if beta == 1 else (1 - beta**n) / (1 - beta)
    weights = np.where(n > 0, 1 / np.maximum(effective, np.finfo(n.dtype).tiny), 0)
    return beside(counts, weights / weights.mean())
