"""The run state: the iteration and other values that the next iteration depends on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """State of a run.

    Attributes:
        run: A unique name, which distinguishes its checkpoints from those of other runs.
        iteration: Number of iterations done, of ``train_iters``.
        validated_at: ``global_step`` of the last validation.
        stopped: Why the run was asked to end early, if it was.
        inside_step: Whether a step has started and has not finished without an error.
        resumed: Whether the next ``run()`` continues this one.
    """

    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    iteration: int = 0
    validated_at: int = 0
    stopped: str | None = None
    inside_step: bool = False
    resumed: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return the values to be saved."""
        return {
            "run": self.run,
            "iteration": self.iteration,
            "validated_at": self.validated_at,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        for name in ("run", "iteration", "validated_at", "stopped"):
            setattr(self, name, state[name])

    def begin(self) -> None:
        """Start a run, or continue one that was loaded."""
        if not self.resumed:
            self.iteration, self.stopped = 0, None
        self.resumed = False
