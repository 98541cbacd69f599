"""A progress bar with the time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metaweight.problems.base.settings import require_text
from tqdm import tqdm

from ..loggers import flatten_stats
from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


class ProgressBar(Hook):
    """Show steps done, time left and the last validation on standard error, in one process.

    Args:
        description: Text in front of the bar.
    """

    only_shows = True

    def __init__(self, description: str | None = None) -> None:
        if description is not None:
            require_text("ProgressBar", "description", description)
        self._description = description
        self._bar: Any = None

    def run_start(self, engine: Engine) -> None:
        self._bar = tqdm(
            total=engine.train_iters,
            initial=engine.run_state.iteration,
            desc=self._description,
            unit="it",
            dynamic_ncols=True,
            disable=not engine.is_rank_zero(),
        )

    def iteration_end(self, engine: Engine) -> None:
        del engine
        self._bar.update()

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        del engine
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in flatten_stats(stats).items()})

    def run_end(self, engine: Engine) -> None:
        del engine
        if self._bar is not None:
            self._bar.close()
