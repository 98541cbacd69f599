"""Parameters that are moved away and put back bit for bit.

Storage stays where it is (so that views, cuDNN's packed weights and captured graphs remain valid)
and version counters are untouched (so that graphs recorded earlier stay usable).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from . import vectors
from .shards import shards_of

PartOfTwo = Callable[[list[Tensor], list[Tensor]], object]


class Displacement:
    """Displaces parameters inside a ``with`` statement, and restores them bit for bit. ::

    with Displacement(parameters) as weights:
        weights.move(shift)
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._data = shards_of(p.data for p in parameters)
        self._home = [t.clone() for t in self._data]

    def __enter__(self) -> Displacement:
        return self

    def __exit__(self, *exception: object) -> None:
        vectors.put(self._home, self._data)

    def move(self, shift: Sequence[Tensor], times: float = 1.0) -> None:
        """Add ``times * shift`` to the parameters."""
        if len(self._data) == 1:
            self._data[0].add_(*shards_of(shift), alpha=times)
        else:
            torch._foreach_add_(self._data, shards_of(shift), alpha=times)


class Displaced:
    """Parameters displaced by a shift inside a ``with`` statement, then restored bit for bit. ::

        with Displaced(parameters, shift) as place:
            ...                # at w + shift
            place.mirror()
            ...                # at w - shift

    The memory of the shift holds what is restored, so no more is needed than for a part of the
    parameters.

    Args:
        parameters: ``w``.
        shift: A vector of no further use.
    """

    def __init__(self, parameters: Iterable[Tensor], shift: Sequence[Tensor]) -> None:
        self._data = shards_of(p.data for p in parameters)
        # In another type it could not hold what is restored.
        self._home = [
            t if t.dtype is p.dtype else t.to(p.dtype)
            for t, p in zip(shards_of(shift), self._data, strict=True)
        ]
        self._stays = False

    def __enter__(self) -> Displaced:
        _part_by_part(self._data, self._home, _shifted, _put_back)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._stays:
            vectors.put(self._home, self._data)

    def mirror(self) -> None:
        """Go to the other side: from ``w + shift`` to ``w - shift``."""
        if len(self._data) == 1:
            self._data[0].lerp_(self._home[0], 2.0)
        else:
            torch._foreach_lerp_(self._data, self._home, 2.0)

    def stay(self) -> None:
        """Leave the parameters where they are."""
        self._stays = True


def exchange(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """Exchange the values of two vectors in place, with memory for a part of one alone.

    An error leaves both as they were.
    """
    _part_by_part(left, right, _exchanged, _exchanged)


def _exchanged(left: list[Tensor], right: list[Tensor]) -> None:
    before = [t.clone() for t in left]
    vectors.put(right, left)
    vectors.put(before, right)


def _shifted(data: list[Tensor], shift: list[Tensor]) -> None:
    before = [t.clone() for t in data]
    if len(data) == 1:
        data[0].add_(shift[0])
    else:
        torch._foreach_add_(data, shift)
    vectors.put(before, shift)


def _put_back(data: list[Tensor], home: list[Tensor]) -> None:
    vectors.put(home, data)


def _part_by_part(
    left: Sequence[Tensor], right: Sequence[Tensor], do: PartOfTwo, undo: PartOfTwo
) -> None:
    """Do something with each part of two vectors, or undo what was done and raise."""
    done: list[tuple[list[Tensor], list[Tensor]]] = []
    try:
        for part in vectors.parts(left):
            pair = list(left[part]), list(right[part])
            do(*pair)
            done.append(pair)
    except BaseException:
        for pair in done:
            undo(*pair)
        raise
