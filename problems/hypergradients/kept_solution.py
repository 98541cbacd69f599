"""The solution of a linear system that a method keeps, and the batches that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..base.settings import require_choice
from ..products.linear_system import LinearSystem
from ..products.recorded_loss import require_recorded
from ..recording.recorded_steps import RecordedStep
from .base import LowerProblem


def require_known_batches(method: str, batches: str) -> None:
    """Refuse anything but ``"recorded"`` and ``"fresh"``.

    Raises:
        ConfigurationError: Naming the method.
    """
    require_choice(method, "batches", batches, ("recorded", "fresh"))


def batches_of(lower: LowerProblem, batches: str, number: int = 1) -> list[list[RecordedStep]]:
    """Return the micro-batches of ``number`` products: ``"recorded"``, those of the last step each
    time; ``"fresh"``, others drawn for each."""
    recorded = list(require_recorded(lower).steps)
    if batches == "recorded":
        return [recorded] * number
    size = len(recorded)
    drawn = lower.draw(number * size)
    return [drawn[i * size : (i + 1) * size] for i in range(number)]


def kept_solution(lower: LowerProblem, system: LinearSystem) -> list[Tensor] | None:
    """Return the solution that the last step left, scaled like ``system.right``; ``None`` if there
    is none of its shapes."""
    found = (lower.state or {}).get("solution")
    if found is None or [t.shape for t in found] != [t.shape for t in system.right]:
        return None
    return system.scaled(found)


def state_of(system: LinearSystem, solution: Sequence[Tensor]) -> dict[str, Any]:
    """Return the state from which the next step starts at ``solution``."""
    return {"solution": system.unscaled(solution)}
