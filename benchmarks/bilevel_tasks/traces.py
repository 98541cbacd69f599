"""What a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Settings:
    """Step sizes and the seed of the batches' order."""

    lower_step: float
    upper_step: float
    seed: int


@dataclass
class Trace:
    """``θ`` at equal distances in a run, and the processor's seconds until then.

    Attributes:
        seconds: Of all threads, without building and compiling the program.
        thetas: ``θ``.
        failed: The first line of the error that ended it early.
    """

    seconds: list[float] = field(default_factory=list)
    thetas: list[NDArray[Any]] = field(default_factory=list)
    failed: str | None = None
    _start: float = 0.0

    def begin(self, now: float) -> None:
        """Count seconds from now on."""
        self._start = now

    def note(self, now: float, theta: Any) -> None:
        """Keep a copy of ``θ`` and the seconds so far."""
        self.seconds.append(now - self._start)
        self.thetas.append(np.array(theta))
