"""Attention by torch's math kernel, which alone can be differentiated twice and forward.

``torch.nn.attention.sdpa_kernel`` asks and tells torch by names that it puts together anew; around
each of many short passes that takes as long as several of their operations. Where torch has what it
calls, that is called here, found once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

Asks = Callable[[], bool]
Tells = Callable[[bool], None]

MATH = "math"


def math_attention() -> AbstractContextManager[Any]:
    """Use the math kernel alone inside a ``with`` statement."""
    return sdpa_kernel(SDPBackend.MATH) if _switches is None else _MathAlone(_switches)


class _MathAlone:
    __slots__ = ("_before", "_switches")

    def __init__(self, switches: list[tuple[Asks, Tells, bool]]) -> None:
        self._switches = switches

    def __enter__(self) -> None:
        self._before = [is_on() for is_on, _, _ in self._switches]
        for _, turn, wanted in self._switches:
            turn(wanted)

    def __exit__(self, *exception: object) -> None:
        for (_, turn, _), before in zip(self._switches, self._before, strict=True):
            turn(before)


def _found() -> list[tuple[Asks, Tells, bool]] | None:
    """Return how torch tells whether each kernel is on, turns it on or off, and whether it is the
    math kernel; nothing where torch does not tell of all."""
    names: Any = getattr(attention, "_backend_names", None)
    if not isinstance(names, dict) or MATH not in names:
        return None
    asks: list[Any] = [getattr(torch._C, f"_get_{name}_sdp_enabled", None) for name in names]
    tells: list[Any] = [getattr(torch._C, f"_set_sdp_use_{name}", None) for name in names]
    if not all(map(callable, [*asks, *tells])):
        return None
    return list(zip(asks, tells, [name == MATH for name in names], strict=True))


_switches = _found()
