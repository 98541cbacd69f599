"""Hypergradient algorithms that other packages register by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ..base.errors import ConfigurationError
from .base import Hypergradient


def registered() -> dict[str, EntryPoint]:
    """Return the entry points of the group ``metaweight.hypergradients`` by name.

    Each names a class that can be made without arguments.
    """
    return {point.name: point for point in entry_points(group="metaweight.hypergradients")}


def load_registered(name: str) -> Hypergradient:
    """Make the algorithm that another package registers as ``name``.

    Raises:
        ConfigurationError: When the entry point does not make a Hypergradient.
    """
    point = registered()[name]
    made = point.load()()
    if not isinstance(made, Hypergradient):
        raise ConfigurationError(
            f"Config(type={name!r}) is declared as {point.value!r}, which makes "
            f"{type(made).__name__}; the entry point must name a Hypergradient class."
        )
    return made
