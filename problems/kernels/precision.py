"""Precision of a problem: autocast and, for half precision, loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

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
