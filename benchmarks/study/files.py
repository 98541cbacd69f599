"""Atomic writing of results: to a temporary file, which is then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    _write(path, text.encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG atomically."""
    with tempfile.SpooledTemporaryFile() as content:
        figure.savefig(content, format="png", dpi=120)
        content.seek(0)
        _write(path, content.read())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name atomically, for ``torch.load``."""
    with tempfile.SpooledTemporaryFile() as content:
        torch.save(dict(tensors), content)
        content.seek(0)
        _write(path, content.read())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
