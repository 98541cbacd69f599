"""What attention was computed by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode


class Called(NamedTuple):
    """Kernels of attention that were called, forward and backward.

    Attributes:
        fused: Calls of fused ones.
        by_parts: Softmaxes over scores of sequences, which a fused kernel keeps inside.
    """

    fused: int
    by_parts: int


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.fused = self.by_parts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.fused += "_scaled_dot_product_flash" in name
        is_softmax = "aten._softmax" in name or "aten._safe_softmax" in name
        self.by_parts += is_softmax and args[0].dim() > 2
        return func(*args, **(kwargs or {}))


def called_kernels(run: Callable[[], object]) -> Called:
    """Call, and return which kernels of attention that called."""
    with _Recording() as recording:
        run()
    return Called(recording.fused, recording.by_parts)
