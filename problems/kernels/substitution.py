"""Conditions under which torch's operations are not replaced by those of this package."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .torch_internals import saved_tensors_may_have_hooks, transforms_may_be_active

_PLAIN = (Tensor, torch.nn.Parameter)
_NONE: Mapping[str, Any] = MappingProxyType({})


def left_to_torch(arguments: tuple[Any, ...], named: Mapping[str, Any] = _NONE) -> bool:
    """Return whether torch's own function must compute an operation.

    That is so under a compiler, a ``torch.func`` transform, a tensor subclass, or hooks on saved
    tensors: activation checkpointing recomputes a segment without this package's functions, and
    requires the tensors saved to be those of the first pass.
    """
    first = arguments[0] if arguments else None
    return (
        torch.compiler.is_compiling()
        or not isinstance(first, Tensor)
        or transforms_may_be_active()
        or saved_tensors_may_have_hooks()
        or any(
            isinstance(t, Tensor) and type(t) not in _PLAIN for t in (*arguments, *named.values())
        )
    )
