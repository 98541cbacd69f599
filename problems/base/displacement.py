"""Parameters that are moved away and put back bit for bit.

Storage stays where it is (so that views, cuDNN's packed weights and captured graphs remain valid)
and version counters are untouched (so that graphs recorded earlier stay usable).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import vectors
from .shards import shards_of


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
    """Parameters displaced by ``v / c`` inside a ``with`` statement, then restored bit for bit. ::

        with Displaced(parameters, v, c) as place:
            ...                # at w + v / c
            place.mirror()
            ...                # at w - v / c

    A spare vector is released as memory of what is restored is taken, so that no more is needed
    than for a part of the parameters.

    Args:
        parameters: ``w``.
        vector: ``v``; a :class:`~.vectors.Spare` one is emptied.
        divisor: ``c``, 0-dim.

    Raises:
        ValueError: For a vector of another number of tensors.
    """

    def __init__(
        self, parameters: Iterable[Tensor], vector: Sequence[Tensor], divisor: Tensor
    ) -> None:
        self._data = shards_of([p.data for p in parameters])
        if len(vector) != len(self._data):
            raise ValueError(
                f"A displacement of {len(self._data)} parameters received a vector of "
                f"{len(vector)} tensors; give one for each parameter."
            )
        self._home: list[Tensor] = []
        self._vector = vector
        self._divisor = divisor
        self._stays = False

    def __enter__(self) -> Displaced:
        home, vector = self._home, self._vector
        try:
            for part in vectors.parts(self._data):
                data = self._data[part]
                home += [t.clone() for t in data]
                if isinstance(vector, vectors.Spare):
                    vectors.add_quotient(data, shards_of(vector[: len(data)]), self._divisor)
                    del vector[: len(data)]
                else:
                    vectors.add_quotient(data, shards_of(vector[part]), self._divisor)
        except BaseException:
            if home:
                vectors.put(home, self._data[: len(home)])
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._stays:
            vectors.put(self._home, self._data)

    def mirror(self) -> None:
        """Go to the other side: from ``w + v / c`` to ``w - v / c``."""
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
    done: list[tuple[list[Tensor], list[Tensor]]] = []
    try:
        for part in vectors.parts(left):
            pair = list(left[part]), list(right[part])
            _exchange(*pair)
            done.append(pair)
    except BaseException:
        for pair in done:
            _exchange(*pair)
        raise


def _exchange(left: list[Tensor], right: list[Tensor]) -> None:
    before = [t.clone() for t in left]
    vectors.put(right, left)
    vectors.put(before, right)
