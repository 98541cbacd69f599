"""Labels that people gave to the training images of CIFAR, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaweight.problems import DataError

from .labelled import LabelledTensors

KEYS = {
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
    "noisy": "noisy_label",
}


def load_human_labels(
    file: str | Path, train: LabelledTensors, which: str = "worst"
) -> LabelledTensors:
    """Give the training data of CIFAR-10 or CIFAR-100 labels by people, CIFAR-10N or CIFAR-100N.

    Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations"
    (ICLR 2022): three people labelled each image of CIFAR-10, one each of CIFAR-100.

    Args:
        file: The authors' ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt``, of which only arrays of
            numbers are loaded, or an ``.npz`` with the same names.
        train: The whole training data in its official order, as :func:`load_cifar` returns it.
        which: For CIFAR-10 ``"random1"``, ``"random2"`` or ``"random3"`` (the first, second or
            third person's), ``"aggregate"`` (by majority) or ``"worst"`` (a wrong one if there is
            any); for CIFAR-100 ``"noisy"``.

    Returns:
        The same samples with these ``labels`` and the ``clean_labels`` of ``train``.

    Raises:
        DataError: When the file cannot be read, has no such labels, or its true labels are not
            those of ``train``.
    """
    where = Path(file).expanduser()
    found = _read(where)
    offered = [name for name, key in KEYS.items() if key in found]
    if which not in offered:
        raise DataError(
            f"load_human_labels was asked for {which!r}, but {where} has "
            f"{', '.join(map(repr, offered)) or 'no labels of CIFAR-10N or CIFAR-100N'}; choose "
            "one of these, or give the file of the other data set."
        )
    labels, clean = (_column(where, found, key) for key in (KEYS[which], "clean_label"))
    if len(labels) != len(train) or len(clean) != len(train):
        raise DataError(
            f"{where} has {len(labels)} labels, but train has {len(train)} samples; give the whole "
            "training data, and split it afterwards."
        )
    different = int((torch.from_numpy(clean) != train.clean_labels.cpu()).sum())
    if different:
        raise DataError(
            f"{different} of {len(train)} true labels in {where} are not those of train; the file "
            "belongs to the official order of the training images, so give them in it."
        )
    return train.with_labels(torch.from_numpy(labels).to(train.device))


def _column(file: Path, found: Mapping[str, Any], key: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = np.asarray(found.get(key, ()))
    if key not in found or values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(
            f"{file} has no integers {key!r}, one for each image; give the authors' file."
        )
    return values.astype(np.int64)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(
            f"Human labels were looked for in {file}, which does not exist; put the authors' "
            "CIFAR-10_human.pt or CIFAR-100_human.pt there."
        )
    try:
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                return dict(opened)
        found = _unpickled(file)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{file} cannot be read as a file of human labels ({type(error).__name__}: {reason}); "
            "give the authors' .pt, or an .npz of integer arrays with the same names."
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(
            f"{file} holds an object of type {type(found).__name__}; give the authors' file, a "
            "dictionary of arrays."
        )
    return found


def _unpickled(file: Path) -> Any:
    """Load a file of torch in which arrays of NumPy are allowed, and nothing else is."""
    build = np.empty(0).__reduce__()[0]
    arrays: list[Any] = [
        np.ndarray,
        np.dtype,
        *{type(np.dtype(c)) for c in np.typecodes["AllInteger"]},
    ]
    # It has another module in NumPy 1 than in NumPy 2.
    arrays += [(build, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    # On leaving, the context forgets what the user has allowed as well.
    allowed = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([one for one in arrays if one not in allowed]):
        return torch.load(file, map_location="cpu", weights_only=True)
