"""Hypergradient algorithms that other packages register by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ..base.errors import ConfigurationError
from .base import Hypergradient


def registered() -> dict[str, EntryPoint]:
    """Return the entry points of the group ``metaweight.hypergradients`` by name.

    Each names a class that can be made without arguments. A built-in name is not replaced.
    """
    return {point.name: point for point in entry_points(group="metaweight.hypergradients")}


def load_registered(name: str) -> Hypergradient:
    """Make the algorithm that another package registers as ``name``.

    Raises:
        ConfigurationError: When the class cannot be imported or made, is no Hypergradient, or when
            several packages register the name.
    """
    points = [p for p in entry_points(group="metaweight.hypergradients") if p.name == name]
    declared = (
        f"Config(type={name!r}) is declared as {' and as '.join(repr(p.value) for p in points)}"
    )
    if len({point.value for point in points}) > 1:
        raise ConfigurationError(
            f"{declared} by several packages; give an object of the class you mean instead of "
            "its name, or uninstall the other package."
        )
    try:
        made = points[0].load()()
    except Exception as error:
        raise ConfigurationError(
            f"{declared}, which could not be made ({type(error).__name__}: {error}); the entry "
            "point must name a class that can be imported and made without arguments. Where it "
            "needs arguments, give an object of it instead of its name."
        ) from error
    if not isinstance(made, Hypergradient):
        raise ConfigurationError(
            f"{declared}, which makes {type(made).__name__}; the entry point must name a "
            "Hypergradient class."
        )
    return made
