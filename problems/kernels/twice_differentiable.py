"""The kernels that compute passes differentiated twice."""

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
from .linear import linear
from .substitution import left_to_torch


class TwiceDifferentiable(TorchFunctionMode):
    """A mode in which batch norm, convolutions and linear maps are differentiated twice faster.

    Values and derivatives are torch's. :mod:`.batch_norm` has second derivatives in few passes;
    :mod:`.convolution` and :mod:`.linear` need not compute gradients that are never read
    (:meth:`values_unread`). Under autocast, for complex numbers, and in the cases of
    :mod:`.substitution`, torch's own functions are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unread: frozenset[int] = frozenset()
        self._instead: dict[Any, Any] = {
            F.batch_norm: batch_norm,
            F.linear: partial(linear, self._is_unread),
            **{own: partial(convolution, own, self._is_unread) for own in DIMENSIONS},
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            # A result computed without a graph is a constant, also for a forward derivative.
            torch._C._set_fwd_grad_enabled(*args)
        instead = self._instead.get(func)
        if instead is not None and not left_to_torch(args) and _is_covered(args[0]):
            func = instead
        return func(*args, **(kwargs or {}))

    def _is_unread(self, key: int) -> bool:
        return key in self._unread

    @contextmanager
    def values_unread(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """Let gradients by weights among ``leaves`` be zeros with a graph, inside the context.

        For a gradient that is only differentiated again, so that its value is never read.
        """
        before, self._unread = self._unread, frozenset(id(t) for t in leaves)
        try:
            yield
        finally:
            self._unread = before


@contextmanager
def differentiable_twice() -> Iterator[TwiceDifferentiable]:
    """Use kernels that can be differentiated twice and forward inside a ``with`` statement.

    For attention that is the math kernel; the fused ones cannot. Compiled modules run uncompiled.
    """
    forward = torch._C._is_fwd_grad_enabled()
    with uncompiled(), sdpa_kernel(SDPBackend.MATH), TwiceDifferentiable() as kernels:
        try:
            yield kernels
        finally:
            torch._C._set_fwd_grad_enabled(forward)


def _is_covered(input: Tensor) -> bool:
    return not torch.is_autocast_enabled(input.device.type) and not input.is_complex()
