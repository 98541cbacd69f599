"""Learned sample weights and the fixed ones they are compared with."""

from .class_aware import ClassAwareWeightNet, class_size_groups
from .class_balanced import class_balanced_weights
from .focal import focal_loss
from .meta_weight_net import MetaWeightNet
from .normalise import normalise_weights
from .problems import WeightedClassifier, WeightLearner

__all__ = [
    "ClassAwareWeightNet",
    "MetaWeightNet",
    "WeightLearner",
    "WeightedClassifier",
    "class_balanced_weights",
    "class_size_groups",
    "focal_loss",
    "normalise_weights",
]
