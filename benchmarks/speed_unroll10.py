"""Ten lower steps for each upper one on the MLP of :mod:`speed_mlp`.

A finite difference, as Betty's, differentiates through the last step only; *exact* and *unrolled*
ones through all ten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from speed_contenders import (
    BETTY,
    BY_HAND,
    EXACT,
    FULL,
    HIGHER_KEPT,
    NATIVE,
    PLAIN,
    PROGRAM,
    TORCHOPT_KEPT,
    UNROLLED_ONE_SIDED,
    bilevel_contenders,
)
from speed_mlp import mlp_task
from turns import Step

STEPS = 10
NAMES = (
    PLAIN,
    BY_HAND,
    NATIVE,
    PROGRAM,
    BETTY,
    UNROLLED_ONE_SIDED,
    EXACT,
    FULL,
    HIGHER_KEPT,
    TORCHOPT_KEPT,
)


def unroll10_contenders(
    steps: int = STEPS, device: str = "cpu", **sizes: Any
) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; for ``sizes`` see :func:`speed_mlp.mlp_task`."""
    return bilevel_contenders(partial(mlp_task, steps=steps, **sizes), NAMES, device)
