"""What loaders save alike: how they were built, and the state of their transform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .augmentation import Resumable


def with_transform(transform: object) -> dict[str, Any]:
    """Return the part of a loader's state that is its transform's; nothing in it without one."""
    return {"transform": transform.state_dict() if isinstance(transform, Resumable) else None}


def require_same(state: Mapping[str, Any], layout: Mapping[str, Any], transform: object) -> None:
    """Refuse the state of a loader that was built differently.

    Args:
        state: With its ``layout`` and what :func:`with_transform` returned.
        layout: How the loader that is to go on was built.
        transform: Its transform.

    Raises:
        ValueError: Saying how they differ.
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
    """Give a transform the state that was saved."""
    if isinstance(transform, Resumable):
        transform.load_state_dict(state["transform"])
