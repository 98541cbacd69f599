"""Values as tensors, whatever device torch makes tensors on by default."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor where it is, and any other value as a tensor on the host.

    ``torch.as_tensor`` moves both to the device of ``torch.set_default_device``.
    """
    if isinstance(value, Tensor):
        return value if dtype is None else value.to(dtype)
    return torch.as_tensor(value, dtype=dtype, device="cpu")
