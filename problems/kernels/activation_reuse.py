"""Reuse of activations between passes that differ in some parameters only.

A hypergradient through a network's last layers displaces only these: everything below them would
be computed to the same numbers again. :class:`ReusableActivations` records the operations of a pass
in order, and keeps those values independent of the changing parameters that dependent operations
read. A later pass then computes the dependent operations only.

A pass is computed in full when it has operations that cannot be reused: random numbers drawn below
the changing parameters, operations that torch does not show (extensions, compiled or scripted
modules, custom autograd functions), segments under activation checkpointing, tensors of unknown
origin, sparse, nested or of inference mode, values overwritten after they were read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..state.random_streams import RandomState
from .torch_internals import saved_tensors_may_have_hooks

Result = TypeVar("Result")

# Their running statistics are written without a change of version.
NORMALISATIONS = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm)


class ReusableActivations:
    """The operations of one pass, with the values that do not depend on some parameters.

    Args:
        changing: The parameters that will change.
        modules: Modules whose parameters and buffers the pass may read.
        batch: Other tensors it may read.
        device: The device from whose random stream it draws.
    """

    def __init__(
        self,
        changing: Iterable[Tensor],
        modules: Iterable[nn.Module],
        batch: Any,
        device: torch.device,
    ) -> None:
        self._changing = list(changing)
        self._modules = list(modules)
        self._batch = batch
        self._device = device
        self._operations: list[_Operation] | None = None

    @property
    def usable(self) -> bool:
        """Whether a pass has been recorded that can be reused."""
        return self._operations is not None

    def serves(self, changing: Iterable[Tensor]) -> bool:
        """Return whether the pass was recorded for these parameters and is usable."""
        now = list(changing)
        same = len(now) == len(self._changing) and all(map(is_, now, self._changing))
        return self.usable and same

    def record(self, compute: Callable[[], Result]) -> Result:
        """Compute a pass and record its operations.

        Args:
            compute: Returns a tensor, or a tuple with the tensors that the pass computes.
        """
        parameters: list[Tensor] = [p for m in self._modules for p in m.parameters()]
        others = [*_tensors(self._batch), *(b for m in self._modules for b in m.buffers())]
        mode = _Recorder(self._changing, parameters, others, self._device)
        with mode:
            result = compute()
        self._operations = mode.finished(result)
        return result

    def repeat(self, compute: Callable[[], Result]) -> Result:
        """Compute the pass at other values of the changing parameters; in full if reuse fails.

        Args:
            compute: Repeats the recorded pass, random numbers included.
        """
        if self._operations is None:
            return compute()
        mode = _Repeater(self._operations)
        result: Result | None = None
        # After any error in the shortened pass, the full one is computed.
        with suppress(Exception), mode:
            result = compute()
        if result is None or not mode.followed(result):
            self._operations = None
            return compute()
        return result


class _Value:
    """A tensor that does not depend on the changing parameters."""

    def __init__(self, tensor: Tensor) -> None:
        self._like = (tensor.shape, tensor.stride(), tensor.dtype)
        self._version = 0
        self.kept: Tensor | None = None
        self._stand_in: Tensor | None = None

    def keep(self, tensor: Tensor) -> None:
        if self.kept is None:
            self.kept, self._version = tensor.detach(), tensor._version

    @property
    def overwritten(self) -> bool:
        return self.kept is not None and self.kept._version != self._version

    def give(self) -> Tensor:
        """Return the value, or a tensor on device ``meta`` when it was not kept."""
        if self.kept is not None:
            return self.kept
        if self._stand_in is None:
            shape, stride, dtype = self._like
            self._stand_in = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return self._stand_in


class _Operation(NamedTuple):
    function: Any
    depends: bool
    """Whether it depends on a changing parameter."""
    sources: tuple[object, ...] = ()
    """For an independent operation: the origins of its tensors."""
    result: Any = None
    """For an independent operation: its result, tensors as values."""


@dataclass(eq=False)
class _Live:
    """Data about a tensor of the pass while it exists."""

    reference: weakref.ref[Tensor]
    value: _Value | None
    """``None`` if it depends on a changing parameter."""


class _Recorder(TorchFunctionMode):
    def __init__(
        self,
        changing: list[Tensor],
        parameters: list[Tensor],
        others: list[Tensor],
        device: torch.device,
    ) -> None:
        super().__init__()
        self._parameters = {id(p) for p in parameters}
        self._others = {id(t): t for t in others}
        self._dependent = {id(p) for p in changing}
        self._touched: set[int] = set()
        self._live: dict[int, _Live] = {}
        self._values: list[_Value] = []
        self._operations: list[_Operation] = []
        self._followable = True
        self._device = device
        self._streams = RandomState(device)
        self._fresh = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._followable:
            return func(*args, **kwargs)
        tensors = [*_tensors(args), *_tensors(kwargs)]
        # A checkpointed segment is computed again later, outside this mode.
        if saved_tensors_may_have_hooks() or not all(
            self._knows(t) and _is_ordinary(t) for t in tensors
        ):
            self._followable = False
            return func(*args, **kwargs)
        depends = any(self._depends(t) for t in tensors)
        self._watch_streams(depends)
        versions = [t._version for t in tensors]
        sources = () if depends else tuple(self._source(t) for t in tensors)
        result = func(*args, **kwargs)
        if not all(map(_is_ordinary, _tensors(result))):
            self._followable = False
            return result
        written = [t for t, v in zip(tensors, versions, strict=True) if t._version != v]
        if depends:
            self._note_dependent(tensors, written, result)
            self._operations.append(_Operation(func, True))
        else:
            if func in NORMALISATIONS:
                written = tensors
            self._touched |= {id(t) for t in written if id(t) in self._others}
            if func not in NORMALISATIONS:
                self._followable &= not any(id(t) in self._parameters for t in written)
            shown = _mapped(result, self._value_of)
            self._operations.append(_Operation(func, False, sources, shown))
        return result

    def finished(self, result: object) -> list[_Operation] | None:
        """Return the operations, or ``None`` if they cannot be reused."""
        self._watch_streams(depends=True)
        for tensor in _tensors(result):
            live = self._of(tensor)
            if live is None:
                return None
            if live.value is not None:
                live.value.keep(tensor)
        if not self._followable or any(value.overwritten for value in self._values):
            return None
        return self._operations

    def _of(self, tensor: Tensor) -> _Live | None:
        live = self._live.get(id(tensor))
        return live if live is not None and live.reference() is tensor else None

    def _knows(self, tensor: Tensor) -> bool:
        key = id(tensor)
        return key in self._parameters or key in self._others or self._of(tensor) is not None

    def _depends(self, tensor: Tensor) -> bool:
        live = self._of(tensor)
        return id(tensor) in self._dependent if live is None else live.value is None

    def _source(self, tensor: Tensor) -> object:
        live = self._of(tensor)
        return id(tensor) if live is None else live.value

    def _watch_streams(self, depends: bool) -> None:
        """Give up when an independent operation draws random numbers, which would not be drawn."""
        if depends and not self._fresh:
            self._followable &= self._streams.is_present()
        elif not depends and self._fresh:
            self._streams = RandomState(self._device)
        self._fresh = depends

    def _note_dependent(self, tensors: list[Tensor], written: list[Tensor], result: Any) -> None:
        for tensor in tensors:
            live = self._of(tensor)
            if live is not None and live.value is not None:
                live.value.keep(tensor)
            elif live is None and id(tensor) in self._others:
                # It may be written without a change of version, as running statistics are.
                self._followable &= id(tensor) not in self._touched
                self._dependent.add(id(tensor))
        if any(self._of(t) is not None and not self._depends(t) for t in written):
            self._followable = False
        self._followable &= not any(id(t) in self._parameters for t in written)
        for tensor in _tensors(result):
            if not self._is_outer(tensor):
                self._live[id(tensor)] = _Live(weakref.ref(tensor), None)

    def _value_of(self, tensor: Tensor) -> object:
        if self._is_outer(tensor):
            return tensor
        live = self._of(tensor)
        if live is None:
            value = _Value(tensor)
            self._values.append(value)
            live = self._live[id(tensor)] = _Live(weakref.ref(tensor), value)
        return live.value

    def _is_outer(self, tensor: Tensor) -> bool:
        return id(tensor) in self._parameters or id(tensor) in self._others


class _Repeater(TorchFunctionMode):
    def __init__(self, operations: list[_Operation]) -> None:
        super().__init__()
        self._operations = operations
        self._position = 0
        self._given: dict[int, _Value] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = self._operations[self._position]
        self._position += 1
        if operation.function != func:
            raise _Mismatch
        tensors = [*_tensors(args), *_tensors(kwargs)]
        if operation.depends:
            if any(v is not None and v.kept is None for v in map(self._value, tensors)):
                raise _Mismatch
            return func(*args, **kwargs)
        sources = [self._value(t) or id(t) for t in tensors]
        if len(sources) != len(operation.sources) or any(
            a is not b and a != b for a, b in zip(sources, operation.sources, strict=True)
        ):
            raise _Mismatch
        return _mapped(operation.result, self._give)

    def followed(self, result: object) -> bool:
        """Return whether the whole pass went as recorded and gave values."""
        values = map(self._value, _tensors(result))
        usable = all(value is None or value.kept is not None for value in values)
        return self._position == len(self._operations) and usable

    def _value(self, tensor: Tensor) -> _Value | None:
        return self._given.get(id(tensor))

    def _give(self, item: object) -> object:
        if not isinstance(item, _Value):
            return item
        tensor = item.give()
        self._given[id(tensor)] = item
        return tensor


class _Mismatch(Exception):
    """The pass did not go as recorded."""


def _is_ordinary(tensor: Tensor) -> bool:
    """Return whether a tensor has strides and a version counter."""
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_inference())


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from _tensors(part)


def _mapped(item: Any, change: Callable[[Any], object]) -> Any:
    """Return an operation's result with its tensors, or the values that replace them, changed."""
    if isinstance(item, (Tensor, _Value)):
        return change(item)
    if type(item) in (tuple, list):
        return type(item)([_mapped(part, change) for part in item])
    if isinstance(item, tuple) and next(_tensors(item), None) is not None:
        # torch's own named results are built from one sequence, namedtuples from their fields.
        items = [_mapped(part, change) for part in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    return item
