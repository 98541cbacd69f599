"""Batches that say which samples they hold."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar


class Indexed(tuple[Any, ...]):
    """The parts of a batch in their order, and after them the positions of its samples.

    It is a tuple like others, so that it can be unpacked, moved and sent to processes; its type
    says that the last part is no part of a sample.
    """

    __slots__ = ()

    unindexed: ClassVar[Any] = tuple
    """Makes the parts without the positions of a sequence of them."""


def indexed(parts: Sequence[Any], indices: Any) -> Indexed:
    """Return parts and positions as one batch; those of a named tuple keep their names, and the
    positions are called ``indices``."""
    fields = getattr(parts, "_fields", None)
    name = type(parts).__name__
    return rebuilt(name, None if fields is None else (*fields, "indices"), (*parts, indices))


def rebuilt(name: str, fields: tuple[str, ...] | None, items: Sequence[Any]) -> Indexed:
    """Return a batch of the names and parts of another, positions among them."""
    found: Indexed = Indexed(items) if fields is None else _type_of(name, fields)(*items)
    return found


def without_indices(batch: Indexed) -> tuple[Any, ...]:
    """Return the parts without the positions, under their names where they have some."""
    own: tuple[Any, ...] = batch.unindexed(batch[:-1])
    return own


@cache
def _type_of(name: str, fields: tuple[str, ...]) -> Any:
    make: Any = namedtuple
    plain, named = make(name, fields[:-1]), make(name, fields)
    own = {
        "__slots__": (),
        # It is found in no module, so a process that receives it makes it anew.
        "__reduce__": lambda self: (rebuilt, (name, fields, tuple(self))),
        "unindexed": plain._make,
    }
    return type(name, (named, Indexed), own)
