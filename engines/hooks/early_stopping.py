"""Early stopping of a run whose validation metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import require_choice, require_count, require_text

from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


class EarlyStopping(Hook):
    """Stop after ``tolerance`` validations in a row without a new best value of ``metric``.

    Args:
        metric: Name of a value that ``validation`` returns.
        tolerance: Validations to wait.
        mode: ``"min"`` when smaller is better, ``"max"`` when larger is.

    A value that is not a number never counts as an improvement.
    """

    def __init__(self, metric: str = "loss", tolerance: int = 5, mode: str = "min") -> None:
        require_text("EarlyStopping", "metric", metric)
        require_count("EarlyStopping", "tolerance", tolerance, least=1)
        require_choice("EarlyStopping", "mode", mode, ("min", "max"))
        self.metric = metric
        self.tolerance = tolerance
        self.mode = mode
        self.best: float | None = None
        self.waited = 0

    def __call__(self, stats: Mapping[str, Any]) -> bool:
        """Record the values of one validation and return whether to stop.

        Raises:
            ConfigurationError: When the metric is not among ``stats``.
        """
        if self.metric not in stats:
            raise ConfigurationError(
                f"Early stopping watches {self.metric!r}, but validation returned "
                f"{sorted(stats) or 'nothing'}; return it there, or choose another "
                "early_stopping_metric."
            )
        value = float(stats[self.metric])
        if self._improves(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.tolerance

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        if self(stats):
            engine.stop(
                f"Early stopping: {self.metric} has not improved on {self.best} for "
                f"{self.tolerance} validations."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value < self.best if self.mode == "min" else value > self.best
