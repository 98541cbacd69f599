"""Steps of a problem's learning-rate scheduler."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..problem import Problem


def step_scheduler(problem: Problem) -> None:
    """Advance the scheduler by one step, unless it waits for a metric."""
    scheduler = problem.scheduler
    if scheduler is None or waits_for_metric(scheduler):
        return
    if not getattr(problem.optimizer, "_opt_called", False):
        with warnings.catch_warnings():
            # Before the first optimizer step, or the first one after loading a checkpoint, torch
            # warns of a wrong order.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            scheduler.step()
    else:
        scheduler.step()


def waits_for_metric(scheduler: Any) -> bool:
    """Return whether the scheduler steps on a measured value instead of a count."""
    return isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
