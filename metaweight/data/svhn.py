"""Street View House Numbers as uint8 tensors, read and verified by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ._unavailable import UNREADABLE, DatasetUnavailableError, download_failure
from .labelled import LabelledTensors

_CLASSES = 10


def load_svhn(root: str | Path, download: bool = False) -> tuple[LabelledTensors, LabelledTensors]:
    """Load the cropped digits of SVHN (Netzer et al., 2011) in their official split.

    torchvision's loader verifies the checksum of each official MATLAB file in ``root`` and reads
    it with SciPy. The 531 131 easier "extra" images are left out.

    Args:
        root: Folder that holds ``train_32x32.mat`` and ``test_32x32.mat``.
        download: Fetch the files into ``root`` that are not there: 182 MB and 64 MB.

    Returns:
        Training (73 257) and test data (26 032): inputs (N, 3, 32, 32), uint8, red-green-blue;
        labels are the digits 0 to 9, and the classes are not balanced; ``indices`` count each part
        from 0 in the official order.

    Raises:
        DatasetUnavailableError: When a file is missing or altered and was not downloaded.
        ImportError: When SciPy is not installed.
    """
    from torchvision.datasets import SVHN  # noqa: PLC0415 (slow to import)

    where = Path(root).expanduser().resolve()
    # Both are opened before either is copied, so that a missing test file is found at once.
    train, test = (_open(SVHN, split, where, download) for split in ("train", "test"))
    return _as_tensors(train), _as_tensors(test)


def _open(source: Any, split: str, root: Path, download: bool) -> Any:
    try:
        return source(str(root), split=split, download=download)
    except ImportError as missing:
        raise ImportError(
            "SVHN was asked for, but SciPy, which reads its files, could not be imported "
            f"({missing}); install it with: pip install scipy"
        ) from missing
    except UNREADABLE as reason:
        raise DatasetUnavailableError(
            _unavailable(source, split, root, reason if download else None)
        ) from reason


def _unavailable(source: Any, split: str, root: Path, download_error: Exception | None) -> str:
    url, filename, _ = source.split_list[split]
    found = "fails its checksum" if (root / filename).is_file() else "does not exist"
    if download_error is not None:
        found += f", and {download_failure(download_error)}"
    return (
        f"svhn was looked for in {root / filename}, which {found}: put the official file of "
        f"{url} there, or use `--dataset digits`, which needs no download."
    )


def _as_tensors(dataset: Any) -> LabelledTensors:
    # The loader's array is a transposed view of the file's.
    inputs = torch.from_numpy(dataset.data).contiguous()
    labels = torch.from_numpy(dataset.labels)
    return LabelledTensors(
        inputs, labels.clone(), labels, torch.arange(len(labels), device="cpu"), _CLASSES
    )
