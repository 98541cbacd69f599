"""Copies of batches, in whose place steps are given later ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from metaweight.problems import ConfigurationError
from metaweight.problems.base.nested import leaves, map_tensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .drawn import Drawn

KNOWN = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""What can be compared, and does not change in itself."""


class Place:
    """A copy of a batch, in whose place others of its form are read.

    Args:
        batch: The batch.

    Attributes:
        batch: The copy.

    Raises:
        ConfigurationError: For a batch with objects other than tensors, numbers and text, or with
            sparse tensors.
    """

    def __init__(self, batch: Any) -> None:
        for part in leaves(batch):
            if isinstance(part, Tensor) and part.layout is not torch.strided:
                raise ConfigurationError(
                    "EngineConfig(capture=...) takes batches of dense tensors, and received one "
                    f"of layout {part.layout}; let the loader give x.to_dense(), or leave capture "
                    "out."
                )
            if not isinstance(part, KNOWN):
                raise ConfigurationError(
                    f"EngineConfig(capture=...) takes batches of tensors, numbers and text in "
                    f"tuples, lists and mappings, and received one with a {type(part).__name__}; "
                    "convert it in the loader's collate_fn, or leave capture out."
                )
        self.batch = map_tensors(_copied, batch)
        self._parts = _parts(self.batch, [])
        self._forms = [_form_of(part) for part in self._parts]
        self._is_plain = _is_plain(self.batch)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the copy."""
        return [part for part in self._parts if isinstance(part, Tensor)]

    def values(self, batch: Any) -> list[Tensor] | None:
        """Return the tensors of a batch that differs by their values alone, or nothing for any
        other."""
        is_plain = self._is_plain and type(batch) is tuple
        if is_plain and [None, *map(_form_of, batch)] == self._forms:
            # As most are, which takes less time.
            return list(batch)
        others = _parts(batch, [])
        if len(others) != len(self._parts):
            return None
        found = []
        for here, form, there in zip(self._parts, self._forms, others, strict=True):
            if isinstance(there, Tensor):
                if form != (there.shape, there.dtype, there.layout, there.requires_grad):
                    return None
                found.append(there)
            elif not _same(here, there):
                return None
        return found

    def holds(self, batch: Any) -> bool:
        """Return whether a batch of the same form has the values of the copy."""
        others = [part for part in _parts(batch, []) if isinstance(part, Tensor)]
        return all(
            bool(torch.isclose(*pair, 0.0, 0.0, equal_nan=True).all())
            for pair in zip(self.tensors, others, strict=True)
        )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def values_of(places: Sequence[Place], drawn: Drawn) -> list[Tensor] | None:
    """Return the tensors of batches, one for each place, or nothing if they do not fit."""
    if drawn.error is not None:
        return None
    found: list[Tensor] = []
    for place, batch in zip(places, drawn.batches, strict=True):
        values = place.values(batch)
        if values is None:
            return None
        found += values
    return found


def _parts(nest: Any, into: list[Any]) -> list[Any]:
    """Add to a list what a batch holds, and the names, kinds and sizes of its containers."""
    if isinstance(nest, Tensor):
        into.append(nest)
    elif isinstance(nest, Mapping):
        into.append(tuple(nest))
        for part in nest.values():
            _parts(part, into)
    elif isinstance(nest, (tuple, list)):
        into.append((type(nest), len(nest)))
        for part in nest:
            _parts(part, into)
    else:
        into.append(nest)
    return into


def _is_plain(batch: Any) -> bool:
    """Return whether a batch is a tuple of tensors."""
    return type(batch) is tuple and all(isinstance(part, Tensor) for part in batch)


def _form_of(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.shape, part.dtype, part.layout, part.requires_grad
    return None


def _same(here: Any, there: Any) -> bool:
    if here is there:
        return True
    if type(here) is tuple:
        # Of names, or the kind and size of a container.
        return bool(here == there)
    # As text, since 0.0 equals -0.0, and no number equals itself.
    return type(here) is type(there) and str(here) == str(there)


def require_batches_that_stay(copies: Sequence[Place], batches: Sequence[Any]) -> None:
    """Refuse a loader that writes batches to the tensors of earlier ones.

    Raises:
        ConfigurationError: If copies, made as batches were drawn, differ from them now.
    """
    if not all(place.holds(batch) for place, batch in zip(copies, batches, strict=False)):
        raise ConfigurationError(
            "EngineConfig(capture=...) draws the batches of several steps before it takes the "
            "first of them, and a loader has written later ones to the tensors of earlier ones; "
            "let it yield new tensors, such as batch.clone(), or leave capture out."
        )


@contextmanager
def watching(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Refuse that batches are made of what steps write to, inside a ``with`` statement."""
    with _Untouched({id(t) for t in tensors}):
        yield


class _Untouched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tensors: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = tensors

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if any(id(part) in self._tensors for part in leaves(args)):
            raise ConfigurationError(
                "EngineConfig(capture=...) draws the batches of several steps before it takes the "
                "first of them, and a loader or get_batch computes with parameters or buffers of a "
                "problem, or with other tensors that these steps change; compute it in "
                "training_step, or leave capture out."
            )
        return func(*args, **(kwargs or {}))
