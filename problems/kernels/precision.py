"""Precision of a problem: autocast and, for half precision, loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from ..base.errors import ConfigurationError

if TYPE_CHECKING:
    from ..problem import Problem

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a problem's loss; an empty context for ``"fp32"``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def full_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that computes a problem's loss in the precision of its parameters."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def difference_step(alpha: float, dtype: torch.dtype, order: int = 2) -> float:
    """Widen the step of a finite difference for numbers with few digits.

    The error of a central difference, of order 2, is rounding over step plus step squared; it is
    least at a step proportional to the cube root of the machine epsilon. ``alpha`` is meant for
    single precision or better, so a 16-bit type takes
    ``alpha * (eps(dtype) / eps(float32)) ** (1/3)``: 40 times for bfloat16, 20 times for float16.
    For a one-sided difference, of order 1, it is the square root: 256 and 91 times.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return alpha
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    return float(alpha * ratio ** (1 / (order + 1)))


def take_precision(problem: Problem, precision: str, asked: str) -> None:
    """Set the precision of a problem that does not set its own.

    Args:
        problem: The problem, before it is prepared.
        precision: ``"fp16"`` or ``"bf16"``.
        asked: Name of the caller's setting, for messages.

    Raises:
        ConfigurationError: When the problem sets another precision.
    """
    own = problem.config.precision
    if own not in ("fp32", precision):
        raise ConfigurationError(
            f"{asked} and Config(precision={own!r}) of problem {problem.name!r} ask for two "
            "precisions; keep one of them."
        )
    problem.use_precision(precision)
