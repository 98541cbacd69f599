"""What a method is tried on: the data, what is wrong with them, the network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metaweight.data import (
    LabelledTensors,
    load_cifar,
    load_digits,
    load_human_labels,
    load_image_folder,
    long_tailed,
    meta_split,
)
from metaweight.noise import NoiseKind, inject_label_noise

DATASETS = ("digits", "cifar10", "cifar100", "images")
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Setting:
    """Data, corruption and network. Clean and test samples are balanced and have right labels.

    Args:
        dataset: One of :data:`DATASETS`.
        network: A name of :data:`~study.networks.NETWORKS`.
        imbalance_factor: Largest over smallest class; 1 leaves the classes unchanged.
        noise: Share of relabelled samples.
        noise_kind: How they are relabelled.
        human_labels: Name of the labels that people gave; ``None`` for the official ones.
        per_class: Training samples of each class; all where ``None``.
        meta_per_class: Clean samples of each class.
        tuning: Measure on samples held out of the training data instead of on the test data.
    """

    dataset: str
    network: str
    imbalance_factor: float = 1.0
    noise: float = 0.0
    noise_kind: NoiseKind = "uniform"
    human_labels: str | None = None
    per_class: int | None = None
    meta_per_class: int = 10
    tuning: bool = False

    @property
    def name(self) -> str:
        """A name for a folder, such as ``"cifar10-if100-quick-clean10"``."""
        parts = [
            self.dataset,
            f"if{self.imbalance_factor:g}" if self.imbalance_factor > 1 else "",
            f"{self.noise_kind}{100 * self.noise:g}" if self.noise > 0 else "",
            self.human_labels or "",
            f"{self.per_class}each" if self.per_class is not None else "",
            self.network,
            f"clean{self.meta_per_class}",
            "tuning" if self.tuning else "",
        ]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Files:
    """Where the data are.

    Args:
        data: Folder that holds CIFAR or receives it; for ``images`` a folder or CSV.
        clean: For ``images``, a folder or CSV of samples whose labels were checked.
        test: For ``images``, a folder or CSV to measure on; a fifth of the clean samples if absent.
        human_labels: File of the labels that people gave.
        size: For ``images``, height and width they are resized to.
    """

    data: Path
    clean: Path | None = None
    test: Path | None = None
    human_labels: Path | None = None
    size: int = 32


@dataclass(frozen=True)
class Splits:
    """Disjoint parts: ``train`` with what is wrong with it, right ``meta`` and ``test``.

    Args:
        train: Training samples.
        meta: Clean samples.
        test: Samples to measure on.
        class_names: Names of the classes.
        files: For ``images``, the file of each training sample.
    """

    train: LabelledTensors
    meta: LabelledTensors
    test: LabelledTensors
    class_names: Sequence[str]
    files: Sequence[str] | None = None


class Source:
    """Training and test data before they are split; files are read once, digits are cut by seed.

    Args:
        setting: Which data.
        files: Where they are.

    Raises:
        DatasetUnavailableError: When CIFAR can neither be read nor downloaded.
        ValueError: When images or human labels cannot be used.
    """

    def __init__(self, setting: Setting, files: Files) -> None:
        self.setting = setting
        self._read: tuple[LabelledTensors, LabelledTensors] | None = None
        self._clean: LabelledTensors | None = None
        self._names: Sequence[str] | None = None
        self._paths: Sequence[str] | None = None
        if setting.dataset in ("cifar10", "cifar100"):
            name = "cifar10" if setting.dataset == "cifar10" else "cifar100"
            train, test = load_cifar(name, files.data, download=True)
            if setting.human_labels is not None and files.human_labels is not None:
                train = load_human_labels(files.human_labels, train, setting.human_labels)
            self._read = train, test
        elif setting.dataset == "images":
            self._read_images(files)

    def _read_images(self, files: Files) -> None:
        train = load_image_folder(files.data, size=files.size)
        assert files.clean is not None
        clean = load_image_folder(files.clean, size=files.size, classes=train.classes)
        if files.test is not None:
            test = load_image_folder(files.test, size=files.size, classes=train.classes).data
            kept = clean.data
        else:
            least = int(clean.data.class_counts().min())
            held_out = max(1, round(TEST_SHARE * least))
            if held_out >= least:
                raise ValueError(
                    f"{files.clean} has {least} image of some class, of which one would be needed "
                    "to measure on; put two or more of each class there, or give --test."
                )
            kept, test = meta_split(clean.data, held_out, generator=stream(0, "test"))
        self._read, self._clean = (train.data, test), kept
        self._names, self._paths = train.classes, [str(path) for path in train.paths]

    def split(self, seed: int) -> Splits:
        """Cut the clean samples, keep ``per_class`` others, make the tail, then the noise.

        Raises:
            ValueError: When there are too few samples.
        """
        setting = self.setting
        train, test = self._read or load_digits(seed=seed)
        if setting.tuning:
            each = max(1, round(VALIDATION_SHARE * len(train) / train.num_classes))
            train, test = meta_split(train, each, generator=stream(seed, "validation"))
        train, meta = self._cut_clean(train, seed)
        if setting.per_class is not None:
            _, chosen = meta_split(train, setting.per_class, generator=stream(seed, "train"))
            train = train.subset(torch.isin(train.indices, chosen.indices))
        train = self._corrupted(train, seed)
        names = self._names or [str(label) for label in range(train.num_classes)]
        paths = self._paths
        files = None if paths is None else [paths[i] for i in train.indices.tolist()]
        return Splits(train, meta, test, names, files)

    def _cut_clean(
        self, train: LabelledTensors, seed: int
    ) -> tuple[LabelledTensors, LabelledTensors]:
        clean, each = self._clean, self.setting.meta_per_class
        if clean is not None:
            if int(clean.class_counts().min()) <= each:
                return train, clean
            return train, meta_split(clean, each, generator=stream(seed, "meta"))[1]
        return meta_split(train, each, generator=stream(seed, "meta"))

    def _corrupted(self, train: LabelledTensors, seed: int) -> LabelledTensors:
        setting = self.setting
        if setting.imbalance_factor > 1:
            train = long_tailed(
                train,
                setting.imbalance_factor,
                class_order=self._class_order(seed, train.num_classes),
                generator=stream(seed, "long tail"),
            )
        if setting.noise > 0:
            noise = inject_label_noise(
                train.labels,
                setting.noise,
                num_classes=train.num_classes,
                kind=setting.noise_kind,
                generator=stream(seed, "label noise"),
            )
            train = train.with_labels(noise.noisy)
        return train

    def _class_order(self, seed: int, classes: int) -> torch.Tensor | None:
        # The published long tails of CIFAR fall in the order of the class numbers. Digits differ
        # much in how hard they are, so there the order is drawn for every seed.
        if self.setting.dataset != "digits":
            return None
        return torch.randperm(classes, generator=stream(seed, "class order"))


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a separate generator for each seed and purpose, the same on every machine."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
