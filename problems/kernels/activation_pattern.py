"""The activation pattern of a pass through a piecewise linear network, held for another pass.

A network of rectifiers and max pooling is smooth within the region of parameters that share its
activation pattern: which units are on, which entries are the largest. Its second derivative is that
of this smooth piece. A difference of gradients across a boundary of regions contains the jump of
the gradient as well, divided by the step; with thousands of units some jump in any step, and a
smaller step leaves fewer but larger errors. A pass computed with the pattern of another one stays
on its piece::

    pattern = ActivationPattern()
    with pattern.noted():
        network(inputs)                 # relu(x) = max(x, 0)
    with pattern.held():
        network(inputs)                 # x where the first pass was on, 0 elsewhere

Patterns are held of torch's ``relu``, ``leaky_relu`` and ``max_pool1d``, ``2d``, ``3d``, by
whichever name they are called, and not of other functions with kinks (``abs``, ``clamp``,
``amax``). Compiled segments and code under ``torch.func`` transforms compute as usual; a pass that
holds a pattern keeps the activations of segments under activation checkpointing.

Source of the term: Hanin, Rolnick, "Deep ReLU Networks Have Surprisingly Few Activation Patterns",
NeurIPS 2019 (arXiv:1906.00904).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .checkpointing import uncheckpointed
from .substitution import left_to_torch
from .torch_internals import has_operations, is_batched


class ActivationPattern:
    """The pattern of one pass; :meth:`noted` records it, :meth:`held` computes with it.

    Memory: a byte for each output of a rectifier, an index for each of a max pooling.
    """

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def __len__(self) -> int:
        """Return the number of operations with kinks in the recorded pass."""
        return len(self._noted)

    def noted(self) -> AbstractContextManager[object]:
        """Return a context that records the pattern of a pass, in place of an earlier one."""
        self._noted = []
        return _Noting(self._noted)

    def held(self) -> AbstractContextManager[object]:
        """Return a context that computes with the recorded pattern, from its first operation on.

        Operations without a graph, and those that the recorded pass did not have at this place and
        of this shape, compute as usual: what is not differentiated has no jump.
        """
        return self._holding() if self._noted else nullcontext()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with uncheckpointed(), _Holding(self._noted):
            yield


class _Kinked(NamedTuple):
    """An operation with kinks."""

    pattern: Callable[..., Tensor]
    """Takes the operation's arguments; returns its pattern."""
    piece: Callable[..., Tensor]
    """Takes a pattern and the operation's arguments; returns its linear piece."""


class _Noted(NamedTuple):
    """The pattern of one operation."""

    operation: _Kinked
    shape: torch.Size
    pattern: Tensor


class _Noting(TorchFunctionMode):
    def __init__(self, noted: list[_Noted]) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = None if torch.compiler.is_compiling() or not args else KINKED.get(func)
        if operation is not None:
            with torch.no_grad():
                pattern = operation.pattern(*args, **kwargs)
            self._noted.append(_Noted(operation, args[0].shape, pattern))
        return func(*args, **kwargs)


class _Holding(TorchFunctionMode):
    def __init__(self, noted: list[_Noted]) -> None:
        super().__init__()
        self._noted = noted
        self._position = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = None if torch.compiler.is_compiling() or not args else KINKED.get(func)
        if operation is None:
            return func(*args, **kwargs)
        position, self._position = self._position, self._position + 1
        noted = self._noted[position] if position < len(self._noted) else None
        own = left_to_torch(args, kwargs) or not torch.is_grad_enabled()
        if own or noted is None or noted[:2] != (operation, args[0].shape):
            return func(*args, **kwargs)
        return operation.piece(noted.pattern, *args, **kwargs)


def passed_where(on: Tensor, x: Tensor) -> Tensor:
    """Return ``x`` where ``on``, 0 elsewhere: the backward pass of ReLU, fused where torch can."""
    if has_operations("threshold_backward"):
        found: Tensor = torch.ops.aten.threshold_backward(x, on.to(x.dtype), 0.0)
        return found
    return x * on


class _Rectifier(torch.autograd.Function):
    """``x`` where a unit is on, ``slope x`` elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, on: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(on)
        ctx.slope = slope
        found = passed_where(on, x)
        return found.mul_(1.0 - slope).add_(x, alpha=slope) if slope else found

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        (on,) = ctx.saved_tensors
        if is_batched(a):
            return a * (on.to(a.dtype) * (1.0 - ctx.slope) + ctx.slope), None, None
        return _Rectifier.apply(a, on, ctx.slope), None, None


def _on(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input > 0


def _rectifier(on: Tensor, input: Tensor, slope: float, *, inplace: bool) -> Tensor:
    if inplace:
        return input.mul_(on.to(input.dtype).mul_(1.0 - slope).add_(slope))
    found: Tensor = _Rectifier.apply(input, on, slope)
    return found


def _relu(on: Tensor, input: Tensor, inplace: bool = False) -> Tensor:
    return _rectifier(on, input, 0.0, inplace=inplace)


def _leaky_relu(
    on: Tensor, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return _rectifier(on, input, negative_slope, inplace=inplace)


def _largest(pooling: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    kwargs.pop("return_indices", None)
    indices: Tensor = pooling(input, *args, **kwargs, return_indices=True)[1]
    return indices


def _entries(dimensions: int, indices: Tensor, input: Tensor, *_: Any, **__: Any) -> Tensor:
    chosen = indices.flatten(-dimensions)
    return input.flatten(-dimensions).gather(-1, chosen).view(indices.shape)


_RELU = _Kinked(_on, _relu)
_RELU_ = _Kinked(_on, partial(_relu, inplace=True))
_LEAKY = _Kinked(_on, _leaky_relu)
_LEAKY_ = _Kinked(_on, partial(_leaky_relu, inplace=True))
_POOL1, _POOL2, _POOL3 = (
    _Kinked(partial(_largest, pooling), partial(_entries, dimensions))
    for dimensions, pooling in enumerate((F.max_pool1d, F.max_pool2d, F.max_pool3d), start=1)
)

KINKED: Mapping[Any, _Kinked] = {
    F.relu: _RELU,
    torch.relu: _RELU,
    Tensor.relu: _RELU,
    torch.relu_: _RELU_,
    Tensor.relu_: _RELU_,
    F.leaky_relu: _LEAKY,
    F.leaky_relu_: _LEAKY_,
    F.max_pool1d: _POOL1,
    torch.max_pool1d: _POOL1,
    F.max_pool2d: _POOL2,
    torch.max_pool2d: _POOL2,
    F.max_pool3d: _POOL3,
    torch.max_pool3d: _POOL3,
}
"""Operations whose pattern is held, by the functions that users and modules call."""
