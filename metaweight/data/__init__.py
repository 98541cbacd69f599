"""Data sets, image files, long tails, splits, augmentation, and loaders of tensors or samples."""

from __future__ import annotations

from ._unavailable import DatasetUnavailableError
from .augmentation import Normalise, Pipeline, RandomCropFlip, Resumable, crop_flip
from .cifar import CIFAR_MEAN, CIFAR_STD, CifarName, load_cifar
from .digits import load_digits
from .human_labels import load_human_labels
from .image_folder import LabelledImages, load_image_folder
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
    "LabelledImages",
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
    "load_human_labels",
    "load_image_folder",
    "load_svhn",
    "long_tailed",
    "long_tailed_counts",
    "meta_split",
    "out_of_distribution_pool",
    "semi_supervised_split",
]
