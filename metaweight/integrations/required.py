"""Packages that a door needs, named where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def required_for(module: str, extra: str) -> Iterator[None]:
    """Name what is missing, and the command that installs it, where an import inside fails.

    Raises:
        ImportError: Then.
    """
    try:
        yield
    except ImportError as missing:
        package = str(missing.name).partition(".")[0]
        raise ImportError(
            f"{module} needs the package {package!r}, which cannot be imported ({missing}); "
            f"pip install 'metaweight[{extra}]'."
        ) from missing
