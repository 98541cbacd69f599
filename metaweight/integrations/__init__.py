"""Learned sample weights where people already train.

``metaweight.integrations.huggingface`` has ``ReweightingTrainer``, a ``transformers.Trainer``, and
``metaweight.integrations.lightning`` has ``ReweightedModule``, a ``LightningModule``. Each takes,
step for step, what :class:`~metaweight.weighting.WeightedClassifier` and
:class:`~metaweight.weighting.WeightLearner` take in an engine. Neither package is imported before
its own module is.
"""

from .weighting_config import WeightingConfig

__all__ = ["WeightingConfig"]
