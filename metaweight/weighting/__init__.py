"""Learned sample weights, and the fixed weights and losses that they are compared with."""

from .class_aware import ClassAwareWeightNet, class_size_groups
from .class_balanced import class_balanced_weights
from .deferred_reweighting import DeferredReweighting, DeferredReweightingHook
from .focal import focal_loss
from .ldam import LDAMLoss, NormalisedLinear
from .logit_adjusted import LogitAdjustedLoss
from .meta_weight_net import MetaWeightNet
from .normalise import normalise_weights
from .problems import WeightedClassifier, WeightLearner
from .sample_weights import SampleWeights

__all__ = [
    "ClassAwareWeightNet",
    "DeferredReweighting",
    "DeferredReweightingHook",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MetaWeightNet",
    "NormalisedLinear",
    "SampleWeights",
    "WeightLearner",
    "WeightedClassifier",
    "class_balanced_weights",
    "class_size_groups",
    "focal_loss",
    "normalise_weights",
]
