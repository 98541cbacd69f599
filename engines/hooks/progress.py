"""A progress bar with losses, learning rates and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem, StepResult
from metaweight.problems.base.settings import require_text
from torch import Tensor
from tqdm import tqdm

from ..loggers import flatten_stats
from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine

SECONDS = 0.5
"""How long values are shown before they are read again, which waits for the device."""


class ProgressBar(Hook):
    """Show steps done, time left, the loss and the learning rate of each problem, and the last
    validation, on standard error, in one process.

    Losses are read from the device twice a second at most, and at the end.

    Args:
        description: Text in front of the bar.
    """

    only_shows = True

    def __init__(self, description: str | None = None) -> None:
        if description is not None:
            require_text("ProgressBar", "description", description)
        self._description = description
        self._bar: Any = None
        self._losses: dict[Problem, Tensor] = {}
        self._validation: dict[str, str] = {}
        self._read_at = 0.0

    def run_start(self, engine: Engine) -> None:
        self._losses, self._validation, self._read_at = {}, {}, time.monotonic() + SECONDS
        self._bar = tqdm(
            total=engine.train_iters,
            initial=engine.run_state.iteration,
            desc=self._description,
            unit="it",
            mininterval=SECONDS,
            dynamic_ncols=True,
            disable=not engine.is_rank_zero(),
        )

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        del engine
        self._losses[problem] = result.loss.detach()

    def iteration_end(self, engine: Engine) -> None:
        is_last = engine.run_state.iteration >= engine.train_iters
        if not self._bar.disable and (is_last or time.monotonic() >= self._read_at):
            self._show()
        self._bar.update()

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        del engine
        self._validation = {k: f"{v:.4g}" for k, v in flatten_stats(stats).items()}
        if not self._bar.disable:
            self._show()
            self._bar.refresh()

    def run_end(self, engine: Engine) -> None:
        del engine
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        losses = [f"{p.name}: {_values_of(p, loss)}" for p, loss in self._losses.items()]
        measured = [f"{name}={value}" for name, value in self._validation.items()]
        self._bar.set_postfix_str(", ".join([*losses, *measured]), refresh=False)
        self._read_at = time.monotonic() + SECONDS


def shows_on_terminal() -> bool:
    """Return whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def _values_of(problem: Problem, loss: Tensor) -> str:
    groups = getattr(problem.optimizer, "param_groups", None) or [{}]
    rate = f" lr={float(groups[0]['lr']):.3g}" if "lr" in groups[0] else ""
    return f"loss={float(loss):.4g}{rate}"
