"""Batches that were drawn before their steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Drawn:
    """Batches, step by step.

    Attributes:
        names: The problem of each.
        batches: The batches.
        error: What was raised in place of the next batch.
        failed: The problem whose batch that would have been.
    """

    names: list[str] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    error: Exception | None = None
    failed: str = ""

    def by_problem(self) -> dict[str, deque[Any]]:
        """Return the batches of each problem, in order."""
        found: dict[str, deque[Any]] = {}
        for name, batch in zip(self.names, self.batches, strict=True):
            found.setdefault(name, deque()).append(batch)
        return found
