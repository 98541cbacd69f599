"""Label noise with a known ground truth, and losses and mixtures that are robust to it."""

from __future__ import annotations

from ._token_rows import SpecialTokens
from .bootstrapping import HardBootstrappingLoss, SoftBootstrappingLoss
from .co_teaching import CoTeachingBatch, CoTeachingClassifier, NetworkPair, co_teaching_loss
from .confident_epochs import OnlineConfidentLearningHook
from .confident_learning import FilterBy, LabelIssues, confident_learning
from .cross_validation import CrossValidated, CrossValidatedConfidence, stratified_folds
from .early_learning import (
    EarlyLearningBatch,
    EarlyLearningClassifier,
    EarlyLearningRegularisation,
)
from .label_noise import LabelNoise, NoiseKind, inject_label_noise
from .learned_bootstrapping import BootstrappedClassifier, LearnedTrust
from .learned_confidence import (
    Confidence,
    ConfidenceLearner,
    ConfidentClassifier,
    LearnedConfidence,
)
from .learned_mixup import LearnedConcentration, MixupClassifier
from .mixgen import mixgen
from .mixup import MixupBatch, mix_pairs, mixup, mixup_accuracy, mixup_loss
from .online_confident_learning import OnlineConfidentLearning
from .robust import GeneralisedCrossEntropy, SymmetricCrossEntropy
from .with_criterion import WithCriterion

__all__ = [
    "BootstrappedClassifier",
    "CoTeachingBatch",
    "CoTeachingClassifier",
    "Confidence",
    "ConfidenceLearner",
    "ConfidentClassifier",
    "CrossValidated",
    "CrossValidatedConfidence",
    "EarlyLearningBatch",
    "EarlyLearningClassifier",
    "EarlyLearningRegularisation",
    "FilterBy",
    "GeneralisedCrossEntropy",
    "HardBootstrappingLoss",
    "LabelIssues",
    "LabelNoise",
    "LearnedConcentration",
    "LearnedConfidence",
    "LearnedTrust",
    "MixupBatch",
    "MixupClassifier",
    "NetworkPair",
    "NoiseKind",
    "OnlineConfidentLearning",
    "OnlineConfidentLearningHook",
    "SoftBootstrappingLoss",
    "SpecialTokens",
    "SymmetricCrossEntropy",
    "WithCriterion",
    "co_teaching_loss",
    "confident_learning",
    "inject_label_noise",
    "mix_pairs",
    "mixgen",
    "mixup",
    "mixup_accuracy",
    "mixup_loss",
    "stratified_folds",
]
