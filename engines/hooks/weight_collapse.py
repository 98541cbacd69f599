"""Warnings when learned sample weights collapse: no longer distinguish samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, Problem, ReweightedProblem, StepResult
from metaweight.problems.base.settings import is_count, is_number, require_text
from torch import Tensor

from .base import Hook
from .declared_weights import require_declared_weights

if TYPE_CHECKING:
    from ..engine import Engine


class WeightCollapse(Hook):
    """Warns when a reweighted problem's weights are nearly 0, equal, or those of few samples.

    For the weights ``w`` of each batch of B samples in a window of ``every`` steps it computes

    - the mean of ``|w|``: below ``zero``, the problem hardly trains at all;
    - the spread, standard deviation over mean: below ``equal``, samples are not distinguished;
    - the share ``(n - 1) / (B - 1)`` with the effective sample size ``n = (Σw)² / Σw²``: 1 for
      equal weights, 0 when one sample holds all the weight. Below ``few``, few samples are trained
      on.

    Each kind of collapse is warned of once, with the number and a remedy, when all batches of a
    window show it. The largest value of each in a window is logged under ``weights/<name>``. The
    host waits for the device once a window. Batches of one sample, in all processes together, are
    taken together as one batch a window: a normalisation over the batch makes such weights 1. In a
    program of several processes the batches of all
    are taken together, by four numbers a step from each, and the first process warns.

    Args:
        problem: Name of the problem, a :class:`~metaweight.problems.ReweightedProblem` such as
            ``WeightedClassifier``.
        every: Steps of a window.
        zero: Smallest mean without a warning.
        equal: Smallest spread without a warning.
        few: Smallest share without a warning.

    Raises:
        ConfigurationError: For a window without steps or a negative threshold.
    """

    optional = True

    def __init__(
        self,
        problem: str,
        *,
        every: int = 100,
        zero: float = 1e-3,
        equal: float = 1e-3,
        few: float = 0.02,
    ) -> None:
        require_text("WeightCollapse", "problem", problem)
        if not is_count(every, least=1):
            raise ConfigurationError(
                f"WeightCollapse({problem!r}, every={every!r}) must be an integer of at least 1."
            )
        if not all(is_number(value, least=0) for value in (zero, equal, few)):
            raise ConfigurationError(
                f"WeightCollapse({problem!r}, zero={zero}, equal={equal}, few={few}): thresholds "
                "are at least 0; 0 never warns."
            )
        self.problem = problem
        self.every = every
        self.zero = zero
        self.equal = equal
        self.few = few
        self.warned: set[str] = set()
        self._steps = 0
        self._largest: Tensor | None = None
        self._lone: list[Tensor] = []

    def run_start(self, engine: Engine) -> None:
        """Refuse a problem that does not declare its weights.

        Raises:
            GraphError: When the engine has no problem of that name.
            ConfigurationError: When the problem does not declare its weights.
        """
        require_declared_weights("WeightCollapse", self.problem, engine.problems)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Record the weights, and warn at the end of a window."""
        if problem.name != self.problem or not isinstance(problem, ReweightedProblem):
            return
        weights = result.sample_weights
        if weights is None or problem.step_state.skipped:
            return
        if weights.numel() * engine.processes.world < 2:
            self._note_lone(engine, problem, _moments(weights))
            return
        seen = _measures(engine.processes.stacked(_moments(weights)))
        self._largest = seen if self._largest is None else self._largest.to(seen).maximum(seen)
        self._steps += 1
        if self._steps == self.every:
            self._check(engine, problem, self._largest.tolist())
            self._steps, self._largest = 0, None

    def _note_lone(self, engine: Engine, problem: Problem, moments: Tensor) -> None:
        self._lone.append(moments)
        if len(self._lone) >= max(self.every, 2):
            together, self._lone = torch.stack(self._lone), []
            self._check(engine, problem, _measures(together).tolist(), lone=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the current window and the warnings given."""
        return {
            "steps": self._steps,
            "largest": self._largest,
            "lone": list(self._lone),
            "warned": sorted(self.warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._steps, self._largest = state["steps"], state["largest"]
        self._lone = list(state.get("lone", []))
        self.warned = set(state["warned"])

    def _check(
        self, engine: Engine, problem: Problem, largest: list[float], *, lone: bool = False
    ) -> None:
        mean, spread, share, size = largest
        numbers = {"mean": mean, "spread": spread, "share": share, "effective_size": size}
        engine.logger.log(numbers, tag=f"weights/{problem.name}", step=problem.count)
        upper = " and ".join(repr(p.name) for p in problem.parents) or "the upper problem"
        if mean < self.zero:
            self._warn(
                problem,
                "nearly 0",
                f"their mean was at most {mean:.3g}, so that it hardly trains. Weights that only "
                "shrink have the effect of a smaller learning rate: normalise them "
                f"(WeightedClassifier(normalise=True)), give {upper} a smaller learning rate, "
                "or lower that of the classifier",
            )
        elif spread < self.equal and lone:
            self._warn(
                problem,
                "nearly equal",
                f"each in a batch of one sample, their standard deviation was at most {spread:.3g} "
                "of their mean. What a batch of one is normalised by, or passes through a softmax, "
                "is 1 and has no hypergradient, also where gradients are accumulated: give "
                "micro-batches several samples, or leave the normalisation out "
                "(WeightedClassifier(normalise=False))",
            )
        elif spread < self.equal:
            self._warn(
                problem,
                "nearly equal",
                f"their standard deviation was at most {spread:.3g} of their mean, so that "
                f"samples are not distinguished. Give {upper} more meta samples, a smaller "
                "learning rate if weights have reached the end of their range, a larger one if "
                "they have never changed, or a weight network with more inputs than the loss "
                "(ClassAwareWeightNet)",
            )
        elif share < self.few:
            self._warn(
                problem,
                "those of few samples",
                f"the effective sample size was at most {size:.3g} of a batch. Give {upper} a "
                "smaller learning rate or more meta samples, or use a bounded weight network "
                "(MetaWeightNet)",
            )

    def _warn(self, problem: Problem, kind: str, what: str) -> None:
        if kind in self.warned:
            return
        self.warned.add(kind)
        if not problem.is_rank_zero():
            return
        warnings.warn(
            f"The sample weights of problem {problem.name!r} are {kind}: in the {self.every} "
            f"steps up to step {problem.count} {what}.",
            UserWarning,
            stacklevel=2,
        )


@torch.no_grad()
def _moments(weights: Tensor) -> Tensor:
    """Return number, largest, mean and sum of squared deviations of ``|w|``, on the device.

    The last two are in units of the largest, since squares of tiny weights would be 0.
    """
    w = weights.abs().double() if weights.dtype == torch.float64 else weights.abs().float()
    largest = w.max()
    relative = w / largest.clamp_min(torch.finfo(w.dtype).tiny)
    mean = relative.mean()
    number = torch.full_like(mean, float(w.numel()))
    return torch.stack([number, largest, mean, (relative - mean).square().sum()])


@torch.no_grad()
def _measures(moments: Tensor) -> Tensor:
    """Return mean, spread, share and effective sample size of weights from their moments.

    The formula is that of Chan, Golub, LeVeque, 1979, for the variance of combined samples.
    """
    number, largest, mean, deviation = moments.unbind(1)
    tiny = torch.finfo(moments.dtype).tiny
    top = largest.max()
    unit = largest / top.clamp_min(tiny)
    mean, deviation = mean * unit, deviation * unit.square()
    total = number.sum()
    together = (number * mean).sum() / total
    deviation = (deviation + number * (mean - together).square()).sum()
    spread = (deviation / total).sqrt() / together.clamp_min(tiny)
    squares = deviation + total * together.square()
    size = ((total * together).square() / squares.clamp_min(tiny)).clamp_min(1)
    return torch.stack([together * top, spread, (size - 1) / (total - 1), size])
