"""Samples per class."""

from __future__ import annotations

from torch import Tensor

from metaweight.problems import ConfigurationError


def require_counts(who: str, counts: object) -> None:
    """Refuse counts that are not one number of samples per class.

    Raises:
        ConfigurationError: Naming the function.
    """
    known = isinstance(counts, Tensor) and counts.ndim == 1 and counts.numel() > 0
    if not known or int(counts.min()) < 0:  # type: ignore[attr-defined]
        shape = tuple(counts.shape) if isinstance(counts, Tensor) else type(counts).__name__
        raise ConfigurationError(
            f"{who} received counts of shape {shape}; give a tensor with one number of samples of "
            "at least 0 per class, such as torch.bincount(labels, minlength=classes)."
        )
