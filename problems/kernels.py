"""Which of torch's kernels compute what is differentiated twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .batch_norm import batch_norm
from .compilation import uncompiled
from .convolution import DIMENSIONS, convolution
from .substitution import left_to_torch


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, batch norm and convolutions are differentiated twice at no waste.

    Values and derivatives are torch's. :mod:`.batch_norm` has second derivatives in few passes;
    :mod:`.convolution` need not compute gradients nobody reads (:meth:`values_unread`). Under
    autocast, and where something else decides (:mod:`.substitution`), torch computes all.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unread: frozenset[int] = frozenset()
        convolutions = {
            own: partial(convolution, own, lambda key: key in self._unread) for own in DIMENSIONS
        }
        self._instead: dict[Any, Any] = {F.batch_norm: batch_norm, **convolutions}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        instead = self._instead.get(func)
        if instead is not None and not left_to_torch(args) and not _in_autocast(args[0]):
            func = instead
        return func(*args, **(kwargs or {}))

    @contextmanager
    def values_unread(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """Inside, gradients by convolution weights among ``leaves`` may be zeros with their graph.

        For a gradient that is only differentiated again.
        """
        before, self._unread = self._unread, frozenset(id(t) for t in leaves)
        try:
            yield
        finally:
            self._unread = before


@contextmanager
def differentiable_twice() -> Iterator[TwiceDifferentiable]:
    """Compute inside with kernels that can be differentiated twice and forward.

    Of attention that is the math kernel; the fused ones cannot. Compiled modules run uncompiled.
    """
    with uncompiled(), sdpa_kernel(SDPBackend.MATH), TwiceDifferentiable() as kernels:
        yield kernels


def _in_autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
