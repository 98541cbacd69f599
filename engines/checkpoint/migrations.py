"""Migrations of checkpoints with earlier formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from metaweight.problems import CheckpointError

FORMAT = 2
"""The written format. Increase it by 1 for a change that an earlier reader would misread."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def _skipped_steps_and_terms(state: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields of skipped steps and of the terms of ``NormLogger``."""
    if state.get("parts") is not None:
        raise ValueError("its parameters are sharded in a folder that is no longer read")
    problems = {}
    for name, saved in state["problems"].items():
        kept = {key: value for key, value in saved.items() if key != "spoiled"}
        problems[name] = {**kept, "skipped": saved["spoiled"]}
    hooks = [
        {**hook, "state": {"terms": hook["state"]["parts"]}}
        if hook["class"] == "NormLogger"
        else hook
        for hook in state["hooks"]
    ]
    return {**state, "problems": problems, "hooks": hooks}


MIGRATIONS: Mapping[int, Migration] = MappingProxyType({1: _skipped_steps_and_terms})
"""For each earlier format ``n`` the function that converts its state to format ``n + 1``."""


def migrate(
    path: Path,
    written: int,
    state: dict[str, Any],
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> dict[str, Any]:
    """Return the state of a checkpoint in the present format.

    Args:
        path: The file, for messages.
        written: The format it was written in.
        state: The state in it.
        migrations: As :data:`MIGRATIONS`.

    Raises:
        CheckpointError: When there is no migration from that format, or one fails.
    """
    for version in range(written, FORMAT):
        if version not in migrations:
            raise CheckpointError(
                f"{path} is of format {written}, which this version of metaweight no longer reads "
                f"(it reads format {FORMAT}); load and save it with a version in between."
            )
        try:
            state = migrations[version](state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} says that it is of format {version}, but its content does not fit that "
                f"format ({type(error).__name__}: {error}); use another checkpoint."
            ) from error
    return state
