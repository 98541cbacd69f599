"""Description of a batch in one line: enough to identify it and to see invalid values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MOST = 8


def batch_digest(batch: Any) -> str:
    """Return shape, type and range of each tensor of a batch, and a hash of all their bytes.

    For floating tensors the range is that of the finite values, with the number of the others. At
    most 8 tensors are described; the hash, 12 digits of SHA-256, is of all. Waits for the device.
    """
    found = list(_tensors(batch, ""))
    if not found:
        return f"type {type(batch).__name__} without tensors"
    digest = hashlib.sha256()
    for _, tensor in found:
        digest.update(_bytes_of(tensor))
    pieces = [_describe(path, tensor) for path, tensor in found[:MOST]]
    if len(found) > MOST:
        pieces.append(f"{len(found) - MOST} more tensors")
    return f"{'; '.join(pieces)}; sha256 {digest.hexdigest()[:12]}"


def batch_form(batch: Any) -> str:
    """Return type and shape of the first tensors of a batch, without reading their values."""
    found = [_form(path, tensor) for path, tensor in _tensors(batch, "")]
    if not found:
        return f"type {type(batch).__name__} without tensors"
    return "; ".join(found[:MOST])


def not_finite_in(batch: Any) -> int:
    """Return how many values of a batch's floating tensors are not finite. Waits for the device."""
    return sum(_not_finite(tensor) for _, tensor in _tensors(batch, ""))


def _tensors(batch: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield path or "batch", batch.detach()
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, f"{path}[{key!r}]")
    elif isinstance(batch, (tuple, list)):
        for index, value in enumerate(batch):
            yield from _tensors(value, f"{path}[{index}]")
    elif hasattr(batch, "__dict__"):
        for key, value in vars(batch).items():
            if isinstance(value, (Tensor, Mapping, tuple, list)):
                yield from _tensors(value, f"{path}.{key}")


def _form(path: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).replace("torch.", "")
    return f"{path} {dtype} {tuple(tensor.shape)}"


def _describe(path: str, tensor: Tensor) -> str:
    text = _form(path, tensor)
    values = _plain(tensor)
    bad = _not_finite(tensor)
    values = values[values.isfinite()] if bad else values
    if values.numel() and not values.is_complex():
        text += f" from {values.min().item():.4g} to {values.max().item():.4g}"
    return text + (f", {bad} not finite" if tensor.is_floating_point() else "")


def _not_finite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int((~_plain(tensor).isfinite()).sum())


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.to_dense() if tensor.layout != torch.strided else tensor).reshape(-1)


def _bytes_of(tensor: Tensor) -> bytes:
    values = _plain(tensor).cpu().contiguous()
    return values.view(torch.uint8).numpy().tobytes()
