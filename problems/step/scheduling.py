"""Steps of a problem's learning-rate scheduler."""

from __future__ import annotations

import warnings

from ..data.step_interface import counts_updates, waits_for_metric
from ..problem import Problem


def step_scheduler(problem: Problem) -> None:
    """Advance the scheduler by one step, unless it waits for a metric."""
    scheduler = problem.scheduler
    if scheduler is None or waits_for_metric(scheduler):
        return
    if counts_updates(scheduler):
        scheduler.step_update(problem.count)
    elif not getattr(problem.optimizer, "_opt_called", False):
        with warnings.catch_warnings():
            # Before the first optimizer step, or the first one after loading a checkpoint, torch
            # warns of a wrong order.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            scheduler.step()
    else:
        scheduler.step()


def end_scheduled_epoch(problem: Problem) -> None:
    """Tell a scheduler that counts epochs how many have ended, one more than the loader says."""
    if counts_updates(problem.scheduler):
        problem.scheduler.step(problem.epoch_counter[0] + 1)
