"""The training, meta and test data of one seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metaweight.data import LabelledTensors, load_cifar, load_digits, long_tailed, meta_split
from metaweight.noise import NoiseKind, inject_label_noise

DATASETS = ("cifar10", "cifar100", "digits")


@dataclass(frozen=True)
class Corruption:
    """Imbalance and noise of the training split; meta and test data are balanced and clean.

    Args:
        imbalance_factor: Largest over smallest class; 1 leaves the classes unchanged.
        noise: Share of relabelled samples.
        noise_kind: How they are relabelled.
    """

    imbalance_factor: float = 1.0
    noise: float = 0.0
    noise_kind: NoiseKind = "uniform"


@dataclass(frozen=True)
class Splits:
    """Disjoint parts: ``train`` with imbalance and noise, clean ``meta`` and ``test``."""

    train: LabelledTensors
    meta: LabelledTensors
    test: LabelledTensors


class Source:
    """Training and test data before they are split; CIFAR is read once, digits are cut by seed.

    Args:
        dataset: One of :data:`DATASETS`.
        folder: Folder that holds CIFAR or receives it.

    Raises:
        DatasetUnavailableError: When CIFAR can neither be read nor downloaded.
    """

    def __init__(self, dataset: str, folder: Path) -> None:
        self.dataset = dataset
        self._cifar = (
            load_cifar("cifar10" if dataset == "cifar10" else "cifar100", folder, download=True)
            if dataset != "digits"
            else None
        )

    def split(
        self,
        seed: int,
        meta_per_class: int,
        corruption: Corruption,
        per_class: int | None = None,
    ) -> Splits:
        """Split off the meta samples, keep ``per_class`` others, make the tail, then the noise.

        Raises:
            ValueError: When there are too few samples.
        """
        everything, test = self._cifar or load_digits(seed=seed)
        train, meta = meta_split(everything, meta_per_class, generator=stream(seed, "meta"))
        if per_class is not None:
            _, train = meta_split(train, per_class, generator=stream(seed, "train"))
        if corruption.imbalance_factor > 1:
            train = long_tailed(
                train,
                corruption.imbalance_factor,
                class_order=self._class_order(seed, train.num_classes),
                generator=stream(seed, "long tail"),
            )
        if corruption.noise > 0:
            noise = inject_label_noise(
                train.labels,
                corruption.noise,
                num_classes=train.num_classes,
                kind=corruption.noise_kind,
                generator=stream(seed, "label noise"),
            )
            train = train.with_labels(noise.noisy)
        return Splits(train, meta, test)

    def _class_order(self, seed: int, classes: int) -> torch.Tensor | None:
        # The published long tails of CIFAR fall in the order of the class numbers. Digits differ
        # much in how hard they are, so there the order is drawn for every seed.
        if self.dataset != "digits":
            return None
        return torch.randperm(classes, generator=stream(seed, "class order"))


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a separate generator for each seed and purpose, the same on every machine."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
