"""Precision of a problem: autocast and, for half precision, loss scaling."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base.errors import ConfigurationError
from ..base.nested import leaves, map_tensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ZERO_IN_HALF = 2.0**-25
"""The largest number that rounds to 0 in float16."""

_WIDER = (
    "Use fp32 parameters (module.float()) with Config(precision='fp16'), which computes in half "
    "precision and scales the loss, or bf16 ones (module.bfloat16())."
)


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


HALF = (torch.bfloat16, torch.float16)
"""Types of 16 bits, the one with fewer digits first."""


def as_computed(batch: Any, parameters: Iterable[Tensor], device: torch.device) -> Any:
    """Return a batch for a pass of a network with these parameters: where autocast, which converts
    both, is left out, numbers of 16 bits take the type of wider parameters."""
    of_16_bits = [t for t in leaves(batch) if isinstance(t, Tensor) and t.dtype in HALF]
    if not of_16_bits or torch.is_autocast_enabled(device.type):
        return batch
    types = dict.fromkeys(p.dtype for p in parameters if p.is_floating_point())
    if not types or not types.keys().isdisjoint(HALF):
        return batch
    wide = next(iter(types))
    return map_tensors(lambda t: t.to(wide) if t.dtype in HALF else t, batch)


class _Results(TorchFunctionMode):
    """Notes the types of results that require a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.types |= {t.dtype for t in leaves(found) if isinstance(t, Tensor) and t.requires_grad}
        return found


def types_of_results(compute: Callable[[], object]) -> set[torch.dtype]:
    """Return the types of what ``compute`` makes of tensors that require a gradient."""
    results = _Results()
    with torch.enable_grad(), results:
        compute()
    return results.types


def difference_step(alpha: float, dtype: torch.dtype, order: int = 2) -> float:
    """Widen the step of a finite difference for numbers with few digits.

    The error of a central difference, of order 2, is rounding over step plus step squared; it is
    least at a step proportional to the cube root of the machine epsilon. ``alpha`` is meant for
    single precision or better, so a 16-bit type takes
    ``alpha * (eps(dtype) / eps(float32)) ** (1/3)``: 40 times for bfloat16, 20 times for float16.
    For a one-sided difference, of order 1, it is the square root: 256 and 91 times.
    """
    if dtype not in HALF:
        return alpha
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    return float(alpha * ratio ** (1 / (order + 1)))


def require_wide_parameters(problem: str, optimizer: Any, precision: str) -> None:
    """Refuse float16 parameters that one of torch's optimizers would turn into NaN; warn of others.

    Adam and its like divide by ``sqrt(v) + eps``, and both are 0 in float16 where a gradient is
    small. Optimizers that are not torch's may compute in another type.

    Raises:
        ConfigurationError: Naming the problem and the remedy.
    """
    step = getattr(type(optimizer), "step", None)
    if not getattr(step, "__module__", "").startswith("torch.optim"):
        return
    narrow = [
        group
        for group in optimizer.param_groups
        if any(p.dtype is torch.float16 and p.requires_grad for p in group["params"])
    ]
    what = f"Problem {problem!r} trains parameters of type float16 by {type(optimizer).__name__}"
    if narrow and precision == "fp16":
        raise ConfigurationError(
            f"{what}, with Config(precision='fp16'), whose loss scaling needs wider ones. {_WIDER}"
        )
    for group in narrow:
        eps = group.get("eps")
        if isinstance(eps, float) and 0 < eps <= ZERO_IN_HALF:
            raise ConfigurationError(
                f"{what}, whose eps={eps} is 0 in this type: a small gradient makes them NaN. "
                f"{_WIDER}"
            )
    if narrow:
        warnings.warn(
            f"{what} as they are: changes below 2^-11 of a parameter and squares of gradients "
            f"below 6e-8 are lost. {_WIDER}",
            stacklevel=4,
        )
