"""Functions that compute what is differentiated twice, in place of torch's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .batch_norm import batch_norm
from .checkpointing import uncheckpointed
from .compilation import uncompiled
from .convolution import DIMENSIONS, convolution
from .elementary import FORWARD, REVERSE
from .linear import linear
from .math_attention import math_attention
from .substitution import left_to_torch
from .torch_internals import (
    FOLLOWS_NO_GRAD,
    GRAD_SWITCHES,
    forward_grad_put_back,
    has_operations,
    set_forward_grad,
)

_OURS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("native_batch_norm", "native_batch_norm_backward"),
    **{own: ("convolution", "convolution_backward") for own in DIMENSIONS},
    F.linear: ("linear",),
}
"""What is computed by functions of ours, and the operations that these are made of."""

_LOOKED_AT = frozenset({*REVERSE, *FORWARD, *_OURS, *GRAD_SWITCHES})
"""What may be computed by something else; all other functions are torch's own."""


class TwiceDifferentiable(TorchFunctionMode):
    """A mode in which torch's operations are differentiated twice rightly, and some faster.

    Values and derivatives are torch's, but for operations of :mod:`.elementary`, whose second or
    forward derivatives torch lacks or has wrong. :mod:`.batch_norm` has second derivatives in few
    passes; :mod:`.convolution` and :mod:`.linear` need not compute gradients that are never read
    (:meth:`values_unread`). For these three, torch's own functions are used under autocast, for
    complex numbers, in the cases of :mod:`.substitution`, and where torch lacks the operations ours
    are made of.

    Args:
        reads_values: Whether values of gradients are read in any case, so that linear layers are
            torch's own.

    Attributes:
        leaves_passes: Whether backward passes are torch's own inside.
    """

    leaves_passes = FOLLOWS_NO_GRAD
    _ours: Collection[Any] = _OURS

    def __init__(self, *, reads_values: bool = False) -> None:
        super().__init__()
        self._reads_values = reads_values
        self._unread: frozenset[int] = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # This is called for every operation.
        if func in _LOOKED_AT:
            func = self._chosen(func, args, kwargs or {})
        found = func(*args, **(kwargs or {}))
        return found if FOLLOWS_NO_GRAD or torch.is_grad_enabled() else _constant(found)

    def _chosen(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what to call in the place of a function."""
        if func in GRAD_SWITCHES:
            # A result computed without a graph is a constant, also for a forward derivative.
            set_forward_grad(*args)
            return func
        if func in self._ours:
            left = left_to_torch(args, kwargs) or not has_operations(*_OURS[func])
            return func if left or not _is_covered(args[0]) else self._own(func)
        if func in REVERSE or (func in FORWARD and _in_forward_mode()):
            return REVERSE.get(func) or FORWARD[func]
        return func

    def _own(self, func: Any) -> Any:
        """Return the function of ours for one of torch's, where it may take its place."""
        if func is F.batch_norm:
            return batch_norm
        if func is not F.linear:
            return partial(convolution, func, self._is_unread)
        # Forward derivatives of linear layers are torch's, which take fewer passes.
        left = self._reads_values or _in_forward_mode()
        return func if left else partial(linear, self._is_unread)

    def _is_unread(self, key: int) -> bool:
        return key in self._unread

    @contextmanager
    def values_unread(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """Let gradients by weights among ``leaves`` be zeros with a graph, inside the context.

        For a gradient that is only differentiated again, so that its value is never read. That of a
        weight that is computed from others is read.
        """
        before, self._unread = self._unread, frozenset(id(t) for t in leaves)
        try:
            yield
        finally:
            self._unread = before


@contextmanager
def differentiable_twice(*, reads_values: bool = False) -> Iterator[TwiceDifferentiable]:
    """Use kernels that can be differentiated twice and forward inside a ``with`` statement.

    For attention that is the math kernel; the fused ones cannot. Compiled modules run uncompiled,
    and checkpointed segments keep their activations.

    Args:
        reads_values: Whether values of gradients are read in any case.
    """
    with (
        uncompiled(),
        uncheckpointed(),
        math_attention(),
        forward_grad_put_back(),
        TwiceDifferentiable(reads_values=reads_values) as kernels,
    ):
        yield kernels


def _is_covered(input: Tensor) -> bool:
    return not torch.is_autocast_enabled(input.device.type) and not input.is_complex()


def _in_forward_mode() -> bool:
    """Return whether tensors may have forward derivatives."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def _constant(found: Any) -> Any:
    """Return what was found without its forward derivatives."""
    if isinstance(found, (tuple, list)):
        return type(found)(map(_constant, found))
    is_tensor = isinstance(found, Tensor)
    return forward_ad.unpack_dual(found).primal if is_tensor else found  # type: ignore[no-untyped-call]
