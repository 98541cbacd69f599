"""When an operation may be computed by another function than torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def left_to_torch(arguments: tuple[Any, ...]) -> bool:
    """Whether something else decides how an operation is computed or differentiated.

    That is a compiler, a ``torch.func`` transform, a tensor subclass, or hooks on saved tensors:
    activation checkpointing computes a segment again where nothing is substituted, and requires
    the tensors saved to be those of the first time.
    """
    first = arguments[0] if arguments else None
    return (
        torch.compiler.is_compiling()
        or not isinstance(first, Tensor)
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or any(isinstance(t, Tensor) and type(t) not in _PLAIN for t in arguments)
    )
