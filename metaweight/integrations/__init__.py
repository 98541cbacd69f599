"""Learned sample weights where people already train.

``metaweight.integrations.huggingface`` has ``ReweightingTrainer``, a ``transformers.Trainer``, and
``metaweight.integrations.lightning`` has ``ReweightedModule``, a ``LightningModule``. Each takes,
step for step, what :class:`~metaweight.weighting.WeightedClassifier` and
:class:`~metaweight.weighting.WeightLearner` take in an engine. For language models,
``metaweight.integrations.huggingface`` has ``MetaTrainer`` and ``metaweight.integrations.trl`` has
``MetaSFTTrainer``, a ``trl.SFTTrainer``, with the steps of :class:`~metaweight.lm.WeightedLM` and
:class:`~metaweight.lm.CleanLM`. No package is imported before its own module is.
"""

from .text_weighting import TextWeighting
from .weighting_config import WeightingConfig

__all__ = ["TextWeighting", "WeightingConfig"]
