"""A mode in which there is no double precision, as on MPS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DOUBLE = (torch.float64, torch.complex128)


class WithoutDouble(TorchDispatchMode):
    """Refuses every operation that takes or makes a tensor in double precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            if isinstance(value, Tensor) and value.dtype in DOUBLE:
                raise TypeError(f"{func} meets a tensor in double precision")
        return found
