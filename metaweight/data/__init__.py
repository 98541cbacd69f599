"""Data sets and loaders: tensors or single samples, long tails, splits and augmentation."""

from __future__ import annotations

from ._unavailable import DatasetUnavailableError
from .augmentation import Normalise, Pipeline, RandomCropFlip, Resumable, crop_flip
from .cifar import CIFAR_MEAN, CIFAR_STD, CifarName, load_cifar
from .digits import load_digits
from .labelled import LabelledTensors
from .loader import TensorLoader
from .long_tail import long_tailed, long_tailed_counts
from .sample_loader import SampleLoader
from .semi_supervised import (
    PROTOCOLS,
    SemiSupervisedSplit,
    SplitSizes,
    out_of_distribution_pool,
    semi_supervised_split,
)
from .splits import meta_split
from .svhn import load_svhn

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "PROTOCOLS",
    "CifarName",
    "DatasetUnavailableError",
    "LabelledTensors",
    "Normalise",
    "Pipeline",
    "RandomCropFlip",
    "Resumable",
    "SampleLoader",
    "SemiSupervisedSplit",
    "SplitSizes",
    "TensorLoader",
    "crop_flip",
    "load_cifar",
    "load_digits",
    "load_svhn",
    "long_tailed",
    "long_tailed_counts",
    "meta_split",
    "out_of_distribution_pool",
    "semi_supervised_split",
]
