"""Progress with losses, learning rates and the time left: a bar, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem, StepResult
from metaweight.problems.base.settings import require_function, require_number, require_text
from torch import Tensor
from tqdm import tqdm

from ..loggers import flatten_stats
from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine

SECONDS = 0.5
"""How long values are shown before they are read again, which waits for the device."""

SECONDS_OF_LINES = 30.0
"""Time between two lines in a log."""

FRESH = 1 / 30
"""For which part of that time a loss is kept before a later one takes its place."""


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
        self._losses[problem] = result.loss

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
        measured = [f"{name}={value}" for name, value in self._validation.items()]
        shown = ", ".join([*_values_of(self._losses), *measured])
        self._bar.set_postfix_str(shown, refresh=False)
        self._read_at = time.monotonic() + SECONDS


class ProgressLine(Hook):
    """Log a line every so many seconds, in one process: steps done of all, steps a second since the
    line before, the time left at that speed, the loss and the learning rate of each problem.

    Losses are read from the device for a line only. That of a problem is of its last step, or of
    one that came before that by less than a thirtieth of the time between two lines.

    Args:
        seconds: Time between two lines; a run that is shorter logs none.
        clock: Returns the time in seconds.

    Raises:
        ConfigurationError: For a time that is not above 0, and for a clock that cannot be called.
    """

    only_shows = True

    def __init__(
        self, seconds: float = SECONDS_OF_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        advice = f"{SECONDS_OF_LINES:g} is the default"
        require_number("ProgressLine", "seconds", seconds, positive=True, advice=advice)
        require_function("ProgressLine", "clock", clock)
        self._seconds = seconds
        self._clock = clock
        self._losses: dict[Problem, Tensor] = {}
        self._fresh_until: dict[Problem, float] = {}
        self._at, self._done = 0.0, 0

    def run_start(self, engine: Engine) -> None:
        self._losses, self._fresh_until = {}, {}
        self._at, self._done = self._clock(), engine.run_state.iteration

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        del engine
        now = self._clock()
        # To detach a loss takes longer than to ask the time, in each of many short steps.
        if now >= self._fresh_until.get(problem, now):
            self._losses[problem] = result.loss
            self._fresh_until[problem] = now + self._seconds * FRESH

    def iteration_end(self, engine: Engine) -> None:
        now = self._clock()
        if now < self._at + self._seconds or not engine.is_rank_zero():
            return
        done, total = engine.run_state.iteration, engine.train_iters
        speed = (done - self._done) / (now - self._at)
        left = tqdm.format_interval(max(0, total - done) / speed)
        parts = [f"{done}/{total} steps", f"{speed:.4g} a second", f"{left} left"]
        engine.logger.info("[Progress] " + ", ".join([*parts, *_values_of(self._losses)]))
        self._at, self._done = now, done


def shows_on_terminal() -> bool:
    """Return whether somebody watches standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def _values_of(losses: Mapping[Problem, Tensor]) -> Iterator[str]:
    for problem, loss in losses.items():
        groups = getattr(problem.optimizer, "param_groups", None) or [{}]
        rate = f" lr={float(groups[0]['lr']):.3g}" if "lr" in groups[0] else ""
        yield f"{problem.name}: loss={float(loss):.4g}{rate}"
