"""Language models that learn which sources, sequences or tokens they should be trained on."""

from .learn import LearnedWeights, learn_weights
from .mixture_loader import MixtureLoader
from .problems import CleanLM, WeightedLM
from .rate import rate
from .rater import Rater
from .reference import reference_losses
from .sources import Sources
from .text_collate import TextCollate

__all__ = [
    "CleanLM",
    "LearnedWeights",
    "MixtureLoader",
    "Rater",
    "Sources",
    "TextCollate",
    "WeightedLM",
    "learn_weights",
    "rate",
    "reference_losses",
]
