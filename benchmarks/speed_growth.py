"""Growth of a step's cost: with batch, unroll, parameters, lower problems and levels.

All but the last two on the MLP of hyper-cleaning; batches also on ResNet-32. Each point is a
separate comparison, with ratios to plain steps of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import speed_three_level
from speed_contenders import (
    BETTY,
    EXACT,
    HIGHER_KEPT,
    NATIVE,
    ONE_SIDED,
    PLAIN,
    UNROLLED_ONE_SIDED,
    bilevel_contenders,
)
from speed_lowers import lowers_contenders
from speed_mlp import CLASSES, FEATURES, mlp_task
from speed_official import resnet32_task
from speed_report import Row, table
from speed_three_level import three_level_contenders
from speed_workloads import Workload, measured
from turns import Step

NAMES = (PLAIN, NATIVE, UNROLLED_ONE_SIDED, EXACT, BETTY)
LEVEL_NAMES = (
    speed_three_level.PLAIN,
    speed_three_level.OURS,
    speed_three_level.ONE_SIDED,
    speed_three_level.EXACT,
    speed_three_level.BETTY,
)


@dataclass(frozen=True)
class Growth:
    """A quantity that grows.

    Attributes:
        label: Its label.
        sizes: Its values.
        contenders: Returns makers of the contenders' steps at a size; must be picklable.
        lower_steps: Whether the size is a number of lower steps, whose time is that of one.
    """

    label: str
    sizes: Sequence[int]
    contenders: Callable[[int], dict[str, Callable[[], Step]]]
    lower_steps: bool = False


def by_batch(size: int, network: str = "mlp", **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with batches of that size, on ``"mlp"`` or ``"resnet32"``."""
    make = mlp_task if network == "mlp" else resnet32_task
    return bilevel_contenders(partial(make, batch=size, **sizes), NAMES)


def by_unroll(size: int, **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with ``size`` lower steps for each upper one."""
    return bilevel_contenders(partial(mlp_task, steps=size, **sizes), (*NAMES, HIGHER_KEPT))


def by_upper(size: int, **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with ``size`` upper parameters."""
    return bilevel_contenders(partial(mlp_task, samples=size, **sizes), NAMES)


def by_parameters(size: int, **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with about ``size`` lower parameters, in small batches."""
    task = partial(mlp_task, width=size // (FEATURES + CLASSES + 1), batch=4, batches=2, **sizes)
    return bilevel_contenders(task, (PLAIN, NATIVE, ONE_SIDED, BETTY))


def by_lowers(size: int, **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with ``size`` lower problems."""
    return lowers_contenders(number=size, **sizes)


def by_levels(size: int, **sizes: Any) -> dict[str, Callable[[], Step]]:
    """Return the contenders with ``size`` levels."""
    return three_level_contenders(LEVEL_NAMES, levels=size, **sizes)


def growths(network: str = "mlp") -> dict[str, Growth]:
    """Return the quantities that grow, by name.

    Args:
        network: On which batches grow, ``"mlp"`` or ``"resnet32"``.
    """
    batches = partial(by_batch, network=network)
    return {
        "batch": Growth(f"batch, {network}", (25, 50, 100, 200, 400), batches),
        "unroll": Growth("lower steps for each upper one", (1, 2, 4, 8, 16), by_unroll, True),
        "upper": Growth("upper parameters", (100, 1000, 10_000, 100_000, 1_000_000), by_upper),
        "parameters": Growth("lower parameters", (10**5, 10**6, 10**7, 10**8), by_parameters),
        "lowers": Growth("lower problems", (1, 2, 4, 8, 16), by_lowers),
        "levels": Growth("levels", (1, 2, 3, 4, 6), by_levels),
    }


def grown(growth: Growth, rounds: int | None = None, threads: int | None = None) -> list[Row]:
    """Measure every point; return a row for each contender and size."""
    rows: list[Row] = []
    for size in growth.sizes:
        workload = Workload(
            f"{growth.label} {size}",
            partial(growth.contenders, size),
            base=PLAIN,
            rounds=7,
            lower_steps=size if growth.lower_steps else 1,
        ).with_effort(rounds, threads)
        outcomes = measured(workload, start="forkserver")
        rows += [{"at": size, **row} for row in table(outcomes, PLAIN, workload.lower_steps)]
    return rows


def lines_of(report: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, list[Row]]]:
    """Return the data for a figure of a written report."""
    return {kind: (found["label"], found["rows"]) for kind, found in report.items()}
