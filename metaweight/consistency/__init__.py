"""Semi-supervised learning by consistency: methods, divergences, ramps, and what can be learned."""

from __future__ import annotations

from metaweight.problems.state.buffers import frozen_statistics

from .batch import SemiSupervisedBatch
from .divergences import DIVERGENCES, Divergence, Probabilities, Target, entropy, js, kl, l1, mse
from .fixmatch import FixMatch
from .gates import (
    LearnedConsistencyWeight,
    LearnedThreshold,
    SampleWeightTable,
    UnlabelledFeatures,
    UnlabelledWeightNet,
)
from .ict import ICT
from .learned import learn_gate, learn_sample_weights, learn_threshold, learn_weight
from .mean_teacher import MeanTeacher
from .method import Consistency, ConsistencyMethod, ConsistencyStep, Network
from .mixmatch import MixMatch, sharpen
from .perturbations import Affine, Chain, CropFlip, Cutout, Erasing, GaussianNoise
from .pi_model import PiModel
from .presets import PRESETS, Preset, preset
from .problems import SemiSupervisedProblem
from .pseudo_label import PseudoLabel
from .ramps import Ramp, RampHook, ramp
from .vat import VAT, adversarial_direction

__all__ = [
    "DIVERGENCES",
    "ICT",
    "PRESETS",
    "VAT",
    "Affine",
    "Chain",
    "Consistency",
    "ConsistencyMethod",
    "ConsistencyStep",
    "CropFlip",
    "Cutout",
    "Divergence",
    "Erasing",
    "FixMatch",
    "GaussianNoise",
    "LearnedConsistencyWeight",
    "LearnedThreshold",
    "MeanTeacher",
    "MixMatch",
    "Network",
    "PiModel",
    "Preset",
    "Probabilities",
    "PseudoLabel",
    "Ramp",
    "RampHook",
    "SampleWeightTable",
    "SemiSupervisedBatch",
    "SemiSupervisedProblem",
    "Target",
    "UnlabelledFeatures",
    "UnlabelledWeightNet",
    "adversarial_direction",
    "entropy",
    "frozen_statistics",
    "js",
    "kl",
    "l1",
    "learn_gate",
    "learn_sample_weights",
    "learn_threshold",
    "learn_weight",
    "mse",
    "preset",
    "ramp",
    "sharpen",
]
