"""CIFAR-10 and CIFAR-100 as uint8 tensors, read and verified by torchvision."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from metaweight._host import as_tensor

from ._unavailable import UNREADABLE, DatasetUnavailableError, download_failure
from .labelled import LabelledTensors

CifarName = Literal["cifar10", "cifar100"]

CIFAR_MEAN: tuple[float, float, float] = (125.3 / 255, 123.0 / 255, 113.9 / 255)
"""Channel means (red, green, blue) that Meta-Weight-Net normalises with (Shu et al., 2019)."""

CIFAR_STD: tuple[float, float, float] = (63.0 / 255, 62.1 / 255, 66.7 / 255)
"""Channel standard deviations that Meta-Weight-Net normalises with (Shu et al., 2019)."""


def load_cifar(
    name: CifarName, root: str | Path, download: bool = False
) -> tuple[LabelledTensors, LabelledTensors]:
    """Load CIFAR-10 or CIFAR-100 (Krizhevsky, 2009) in its official split.

    torchvision's loader reads the official Python files below ``root`` and verifies the checksum
    of each. An official archive lying in ``root`` is unpacked first, without network.

    Args:
        name: ``"cifar10"`` or ``"cifar100"`` (its 100 fine labels).
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``, or the archive.
        download: Fetch the archive into ``root`` when it is not there.

    Returns:
        Training (50 000) and test data (10 000): inputs (N, 3, 32, 32), uint8, red-green-blue;
        ``indices`` count each part from 0 in the official order.

    Raises:
        DatasetUnavailableError: When the files are missing, incomplete or altered, and no archive
            could be unpacked or downloaded.
        ValueError: When ``name`` is neither of the two.
    """
    source = _source(name)
    where = Path(root).expanduser().resolve()
    with _known_warnings_silenced():
        train = _open(source, name, where, download)
        test = source(str(where), train=False)
    classes = len(train.classes)
    return _as_tensors(train, classes), _as_tensors(test, classes)


def _source(name: str) -> Any:
    from torchvision import datasets  # noqa: PLC0415 (slow to import)

    if name == "cifar10":
        return datasets.CIFAR10
    if name == "cifar100":
        return datasets.CIFAR100
    raise ValueError(f"load_cifar was asked for {name!r}; use 'cifar10' or 'cifar100'.")


def _open(source: Any, name: str, root: Path, download: bool) -> Any:
    from torchvision.datasets.utils import check_integrity  # noqa: PLC0415 (slow to import)

    try:
        return source(str(root), train=True, download=download)
    except UNREADABLE as reason:
        if download or not check_integrity(str(root / source.filename), source.tgz_md5):
            raise DatasetUnavailableError(
                _unavailable(source, name, root, reason if download else None)
            ) from reason
    # With a verified archive in place torchvision's `download` only unpacks it.
    return source(str(root), train=True, download=True)


def _unavailable(source: Any, name: str, root: Path, download_error: Exception | None) -> str:
    folder, archive = root / source.base_folder, root / source.filename
    found = "is incomplete or fails its checksums" if folder.is_dir() else "does not exist"
    if download_error is not None:
        found += f", and {download_failure(download_error)}"
    elif archive.is_file():
        found += f", and the archive {archive} fails its checksum"
    return (
        f"{name} was looked for in {folder}, which {found}: put the official archive "
        f"{source.filename} into {root}, where it is unpacked at the next start, or use "
        "`--dataset digits`, which needs no download."
    )


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    # Python 2 pickled the official files with `align=0`, of which NumPy 2.4.0 to 2.4.4 warn, and
    # torchvision unpacks without naming a filter, of which Python 3.12 and 3.13 warn. A user can
    # change neither.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        warnings.filterwarnings("ignore", message=r"Python 3\.14 will, by default, filter")
        yield


def _as_tensors(dataset: Any, num_classes: int) -> LabelledTensors:
    inputs = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    labels = as_tensor(dataset.targets, torch.int64)
    return LabelledTensors(
        inputs, labels.clone(), labels, torch.arange(len(labels), device="cpu"), num_classes
    )
