"""When a problem's learning-rate scheduler steps."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .problem import Problem


def step_scheduler(problem: Problem) -> None:
    """Advance the scheduler by one step; one that waits for a metric is left to the engine."""
    scheduler = problem.scheduler
    if scheduler is None or waits_for_metric(scheduler):
        return
    begins = getattr(scheduler, "_step_count", 0) == 1
    none_yet = begins and not getattr(problem.optimizer, "_opt_called", False)
    if none_yet or problem.count < problem.config.gradient_accumulation:
        with warnings.catch_warnings():
            # The first optimizer step is still to come, which torch takes for a wrong order.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            scheduler.step()
    else:
        scheduler.step()


def waits_for_metric(scheduler: Any) -> bool:
    """Whether the scheduler steps on a measured value rather than on time."""
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
