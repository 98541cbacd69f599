"""Sample selection by pretrained networks: samples are scored, then left out, weighted by rank or
weighted by a learned mapping from score to weight."""

from __future__ import annotations

from .hook import EnsembleAction, EnsembleHook
from .loaders import SubsetLoader, subset_loader
from .networks import MemberMixture, MixtureWeightNet, ScoreWeightNet
from .online_ensemble import OnlineEnsemble
from .problems import ScoreWeightedClassifier
from .ranking import ReweightMode, resample, reweight
from .scoring import Metric, cross_entropy_scores

__all__ = [
    "EnsembleAction",
    "EnsembleHook",
    "MemberMixture",
    "Metric",
    "MixtureWeightNet",
    "OnlineEnsemble",
    "ReweightMode",
    "ScoreWeightNet",
    "ScoreWeightedClassifier",
    "SubsetLoader",
    "cross_entropy_scores",
    "resample",
    "reweight",
    "subset_loader",
]
