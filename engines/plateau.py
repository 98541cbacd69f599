"""Steps of schedulers that wait for a metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaweight.problems import GraphError, Problem
from metaweight.problems.data.step_interface import waits_for_metric

from .distributed.processes import Processes


def step_plateau(
    problem: Problem, stats: Mapping[str, Any], source: str, processes: Processes
) -> None:
    """Step the problem's scheduler if it is a ``ReduceLROnPlateau``.

    Args:
        problem: The problem.
        stats: Values by name, among them ``Config(plateau_metric=...)``.
        source: What returned them, for the message.
        processes: Over which the metric is averaged.

    Raises:
        GraphError: When the metric is not among the values.
    """
    if not waits_for_metric(problem.scheduler):
        return
    metric = problem.config.plateau_metric
    if metric not in stats:
        raise GraphError(
            f"The ReduceLROnPlateau scheduler of problem {problem.name!r} waits for "
            f"{metric!r}, but {source} returned {sorted(stats) or 'nothing'}; return it "
            "there, or name another value in Config(plateau_metric=...)."
        )
    problem.scheduler.step(processes.mean_stats({metric: stats[metric]})[metric])
