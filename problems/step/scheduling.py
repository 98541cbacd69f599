"""When a problem's learning-rate scheduler steps."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..problem import Problem


def step_scheduler(problem: Problem) -> None:
    """Advance the scheduler by one step; one that waits for a metric is left to the engine."""
    scheduler = problem.scheduler
    if scheduler is None or waits_for_metric(scheduler):
        return
    if not getattr(problem.optimizer, "_opt_called", False):
        with warnings.catch_warnings():
            # The first optimizer step, or the first one after a checkpoint was loaded, is still to
            # come, which torch takes for a wrong order.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            scheduler.step()
    else:
        scheduler.step()


def waits_for_metric(scheduler: Any) -> bool:
    """Whether the scheduler steps on a measured value rather than on time."""
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
