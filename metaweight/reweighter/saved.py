"""A trained estimator as one file of tensors in the safetensors format, with its settings as JSON.

Nothing is pickled, so that a file of unknown origin runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaweight._written import replacing
from metaweight.problems import CheckpointError

FILE = "reweighter.safetensors"
_FORMAT = "metaweight.reweighter 1"


def write(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    """Write tensors and settings atomically, and return the file.

    Raises:
        ImportError: When safetensors is not installed.
    """
    save_file = _safetensors().save_file
    folder.mkdir(parents=True, exist_ok=True)
    where = folder / FILE
    text = json.dumps(settings, default=_plain)
    # Tensors that share memory, as tied weights do, are refused by safetensors.
    own = {
        name: each.clone(memory_format=torch.contiguous_format) for name, each in tensors.items()
    }
    with replacing(where) as partial:
        save_file(own, partial, {"format": _FORMAT, "settings": text})
    return where


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the settings of a file that :func:`write` made.

    Raises:
        CheckpointError: When there is none, or it is another's or damaged.
        ImportError: When safetensors is not installed.
    """
    torch_part = _safetensors()
    where = folder / FILE
    if not where.is_file():
        raise CheckpointError(f"{folder} holds no {FILE}; give a folder that save() wrote.")
    import safetensors  # noqa: PLC0415 (optional)

    try:
        with safetensors.safe_open(where, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(
                f"{where} is of the format {metadata.get('format')!r}; this version reads "
                f"{_FORMAT!r}."
            )
        return torch_part.load_file(where), json.loads(metadata["settings"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be read: {error}; save the model again.") from error


def _plain(value: Any) -> Any:
    """Return a setting that JSON does not hold as one that it does.

    Raises:
        ValueError: For others.
    """
    if isinstance(value, torch.device):
        return str(value)
    # A number of NumPy, as searches over settings give them.
    if not hasattr(value, "item"):
        raise ValueError(
            f"save() was given a model with the setting {value!r}; give numbers and text, which "
            "JSON holds."
        )
    return value.item()


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors below a name, without it."""
    begin = f"{name}."
    return {key[len(begin) :]: each for key, each in tensors.items() if key.startswith(begin)}


def _safetensors() -> Any:
    try:
        import safetensors.torch  # noqa: PLC0415 (optional)
    except ImportError as missing:
        raise ImportError(
            "Models are saved by safetensors, which is not installed; pip install safetensors."
        ) from missing
    return safetensors.torch
