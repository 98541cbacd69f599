"""A hook that makes upper updates rarer while an upper problem's gradients are mostly noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, GraphError, Problem
from metaweight.problems.base import vectors
from metaweight.problems.base.settings import is_count, is_number, require_text
from torch import Tensor

from .base import Hook

if TYPE_CHECKING:
    from ..engine import Engine


class AdaptiveInterval(Hook):
    """Doubles the interval of an upper problem while its gradients disagree, halves it while
    they agree.

    With ``u_t`` the upper problem's gradient ``g_t`` scaled to unit length, the agreement is
    ``a_t = ||Σ_s β^(t-s) u_s|| / Σ_s β^(t-s)``: 1 for gradients of equal direction, about
    ``sqrt((1 - β) / (1 + β))``, 0.23 for β = 0.9, for gradients that are pure noise of mean 0.
    While it is low, a step of the upper problem is mostly noise, and fewer steps lose little. The
    interval starts at 1; at least ``patience`` upper steps pass between two changes of it.

    An upper update then follows every ``interval`` inner loops of ``unroll_steps`` optimizer steps.
    ``Config(unroll_steps=k)`` alone is a fixed interval for hypergradients that use the last step
    only. The agreement is read one upper step late, so that the host does not wait for the device.
    Gradients that are not finite are left out of it.

    Args:
        upper: Name of the upper problem. Its lower problems have no other upper problem.
        most: Longest interval, in inner loops.
        widen_below: Agreement below which the interval doubles.
        narrow_above: Agreement above which it halves.
        patience: Upper steps between two changes.
        beta: β.

    Raises:
        ConfigurationError: For values that contradict each other.
    """

    changes_gradients = False

    def __init__(
        self,
        upper: str,
        *,
        most: int = 8,
        widen_below: float = 0.5,
        narrow_above: float = 0.7,
        patience: int = 20,
        beta: float = 0.9,
    ) -> None:
        require_text("AdaptiveInterval", "upper", upper)
        counts = all(is_count(value, least=1) for value in (most, patience))
        shares = all(is_number(value, 0, 1) for value in (widen_below, narrow_above, beta))
        if not counts or not shares or widen_below >= narrow_above or beta in (0, 1):
            raise ConfigurationError(
                f"AdaptiveInterval({upper!r}, most={most}, widen_below={widen_below}, "
                f"narrow_above={narrow_above}, patience={patience}, beta={beta}): most and "
                "patience are at least 1, 0 <= widen_below < narrow_above <= 1, and beta lies "
                "between 0 and 1."
            )
        self.upper = upper
        self.most = most
        self.widen_below = widen_below
        self.narrow_above = narrow_above
        self.patience = patience
        self.beta = beta
        self.interval = 1
        self._steps = 0
        self._sum: Tensor | None = None
        self._weight: Tensor | float = 0.0
        self._seen = _DelayedNumber()

    def run_start(self, engine: Engine) -> None:
        """Refuse a program in which the interval of the upper problem affects another one.

        Raises:
            GraphError: Naming the problem.
        """
        named = [problem for problem in engine.problems if problem.name == self.upper]
        if not named or not named[0].children:
            raise GraphError(
                f"AdaptiveInterval({self.upper!r}) needs a problem of that name that waits for "
                f"lower ones; the problems are {', '.join(p.name for p in engine.problems)}."
            )
        shared = [lower.name for lower in named[0].children if len(lower.parents) > 1]
        if shared:
            raise GraphError(
                f"AdaptiveInterval({self.upper!r}) would also change when other problems step, "
                f"since {', '.join(shared)} has several upper problems."
            )

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        """Update the agreement with the gradient, and choose the interval."""
        complete = problem.count % problem.config.gradient_accumulation == 0
        if problem.name != self.upper or not complete:
            return
        before = self._seen.value()
        self._steps += 1
        self._seen.note(self._agreement(list(problem.trainable_parameters())))
        if before is None or self._steps <= self.patience:
            return
        chosen = self.interval
        if before < self.widen_below:
            chosen = min(2 * self.interval, self.most)
        elif before > self.narrow_above:
            chosen = max(self.interval // 2, 1)
        if chosen != self.interval:
            self.interval, self._steps = chosen, 0
            for lower in problem.children:
                engine.upper_update_every(lower, chosen)

    @torch.no_grad()
    def _agreement(self, parameters: Sequence[Tensor]) -> Tensor:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        unit = vectors.flat(gradients).float()
        norm = unit.norm()
        unit /= norm.clamp_min(1e-30)
        before = torch.zeros_like(unit) if self._sum is None else self._sum.to(unit)
        weight = torch.as_tensor(self._weight, dtype=torch.float32).to(norm, non_blocking=True)
        # A gradient that the loss scaler refuses has no direction.
        fine = norm.isfinite()
        self._sum = torch.where(fine, self.beta * before + unit, before)
        self._weight = torch.where(fine, self.beta * weight + 1.0, weight)
        agreement: Tensor = self._sum.norm() / self._weight
        return agreement

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the hook; the schedule saves its own interval."""
        return {
            "interval": self.interval,
            "steps": self._steps,
            "sum": self._sum,
            "weight": self._weight,
            "seen": self._seen.value(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.interval, self._steps = state["interval"], state["steps"]
        self._sum, self._weight = state["sum"], state["weight"]
        if self._sum is not None and not self._sum.isfinite().all():
            # An earlier version added gradients that overflow.
            self._sum, self._weight = None, 0.0
        self._seen = _DelayedNumber(state["seen"])


class _DelayedNumber:
    """A number computed on a device, copied without blocking and read later."""

    def __init__(self, value: float | None = None) -> None:
        self._value: Tensor | float | None = value
        self._arrived: Any = None

    def note(self, value: Tensor) -> None:
        if value.device.type != "cuda":
            self._value = value
            return
        self._value = torch.empty((), pin_memory=True, device="cpu").copy_(value, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def value(self) -> float | None:
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return None if self._value is None else float(self._value)
