"""Data as tensors: loading, long tails, meta splits, augmentation and batches."""

from __future__ import annotations

from .augmentation import Normalise, Pipeline, RandomCropFlip, Resumable, crop_flip
from .cifar import CIFAR_MEAN, CIFAR_STD, CifarName, DatasetUnavailableError, load_cifar
from .digits import load_digits
from .labelled import LabelledTensors
from .loader import TensorLoader
from .long_tail import long_tailed, long_tailed_counts
from .splits import meta_split

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "CifarName",
    "DatasetUnavailableError",
    "LabelledTensors",
    "Normalise",
    "Pipeline",
    "RandomCropFlip",
    "Resumable",
    "TensorLoader",
    "crop_flip",
    "load_cifar",
    "load_digits",
    "long_tailed",
    "long_tailed_counts",
    "meta_split",
]
