"""Learned sample weights where people already train.

``metaweight.integrations.huggingface`` has ``ReweightingTrainer``, a ``transformers.Trainer``. It
takes, step for step, what :class:`~metaweight.weighting.WeightedClassifier` and
:class:`~metaweight.weighting.WeightLearner` take in an engine. No other package is imported before
its own module is.
"""

from .weighting_config import WeightingConfig

__all__ = ["WeightingConfig"]
