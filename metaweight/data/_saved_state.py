"""The parts of a loader's state that all loaders have: their layout and their transform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .augmentation import Resumable


def with_transform(transform: object) -> dict[str, Any]:
    """Return the entry of a loader's state for its transform; ``None`` when that has no state."""
    return {"transform": transform.state_dict() if isinstance(transform, Resumable) else None}


def require_same(state: Mapping[str, Any], layout: Mapping[str, Any], transform: object) -> None:
    """Refuse the state of a loader that was built differently.

    Args:
        state: A saved state, with its ``layout`` and the entry of :func:`with_transform`.
        layout: Layout of the loader that is to continue.
        transform: Its transform.

    Raises:
        ValueError: Naming the difference.
    """
    if dict(state["layout"]) != dict(layout):
        raise ValueError(
            f"A state of a loader with {dict(state['layout'])} was given to one with "
            f"{dict(layout)}; build the loader as it was when saved."
        )
    if (state["transform"] is None) == isinstance(transform, Resumable):
        raise ValueError(
            "The transform of the loader that was saved and that of this one do not both have "
            "a state; build the loader with the same transform."
        )


def load_transform(state: Mapping[str, Any], transform: object) -> None:
    """Load the saved state of a transform, if there is one."""
    if isinstance(transform, Resumable):
        transform.load_state_dict(state["transform"])
