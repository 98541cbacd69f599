"""A step that was taken, as it is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        problem: Name of the problem.
        count: Its number.
        global_step: The number of its iteration, if it has one.
        loss: Its loss.
        metrics: What else there is to log.
    """

    problem: str
    count: int  # type: ignore[assignment] # replaces tuple.count
    global_step: int | None
    loss: Tensor
    metrics: Mapping[str, Any]
