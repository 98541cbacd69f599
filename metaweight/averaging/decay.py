"""Decay of an exponential moving average at each update.

With the parameters ``θ_t`` after update t = 1, 2, … the average is ``θ'_t = d_t θ'_{t-1} +
(1 - d_t) θ_t``, from ``θ'_0 = θ_0``. In the first updates a constant ``d_t = β`` keeps too much
of ``θ_0``; three warm-ups are in use:

- ``mean_teacher``: ``d_t = min(1 - 1 / (t + 1), β)``, the plain mean of ``θ_0 … θ_t`` at first
  (Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780).
- ``ict``: ``d_t = min(1 - 1 / t, β)``, the plain mean of ``θ_1 … θ_t`` at first, as in programs
  for interpolation consistency training (Verma et al., IJCAI 2019, arXiv:1903.03825).
- ``bias_corrected``: ``d_t = β (1 - β^{t-1}) / (1 - β^t)``, so that ``θ'_t`` is the average of
  ``θ_1 … θ_t`` with weights ``β^{t-k}`` scaled to sum 1 (the correction of Kingma and Ba, "Adam",
  ICLR 2015, arXiv:1412.6980).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_part

WarmUp = Literal["none", "mean_teacher", "ict", "bias_corrected"]
Buffers = Literal["copy", "ema", "own", "none"]


@dataclass(frozen=True)
class EMASettings:
    """Settings of an exponential moving average.

    Attributes:
        beta: ``β`` in [0, 1).
        warm_up: How it starts.
        buffers: Source of the teacher's buffers.
    """

    beta: float = 0.999
    warm_up: WarmUp = "none"
    buffers: Buffers = "copy"

    def __post_init__(self) -> None:
        if not is_part(self.beta):
            raise ConfigurationError(
                f"EMA(beta={self.beta}) needs beta in [0, 1): it averages over about "
                "1 / (1 - beta) updates."
            )
        _require_known("warm_up", self.warm_up, get_args(WarmUp))
        _require_known("buffers", self.buffers, get_args(Buffers))

    def decay(self, step: int) -> float:
        """Return ``d_t`` of update t = ``step``, counted from 1."""
        if self.warm_up == "mean_teacher":
            return min(1 - 1 / (step + 1), self.beta)
        if self.warm_up == "ict":
            return min(1 - 1 / step, self.beta)
        if self.warm_up == "bias_corrected" and self.beta > 0:
            rate = math.log(self.beta)
            return self.beta * math.expm1((step - 1) * rate) / math.expm1(step * rate)
        return self.beta


def _require_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"EMA({name}={value!r}) is unknown; use one of {known}.")
