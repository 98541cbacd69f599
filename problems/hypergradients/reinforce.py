"""Score-function hypergradient for lower problems that make random decisions.

The upper parameters ``θ`` define a distribution ``p_θ`` from which the lower problem draws
decisions ``a_t`` at every step: which samples to keep, how to augment them, what to label them. The
solution ``w_T(a)`` need not be differentiable in the decisions; their log-probability is
differentiated instead::

    d/dθ E[F(w_T(a))] = E[(F(w_T(a)) - b) Σ_t ∇_θ log p_θ(a_t)]

for any baseline ``b`` that does not depend on the decisions. ``b`` reduces the variance. The
estimate is the mean over ``n`` runs of the loop.

Sources: Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
Learning" (REINFORCE), Machine Learning 1992; the leave-one-out baseline: Kool, van Hoof, Welling,
"Buy 4 REINFORCE Samples, Get a Baseline for Free!", ICLR workshop 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError, LossError
from ..base.settings import is_count, require_choice, require_count
from ..recording.recorded_steps import RecordedStep, RecordedUpdate
from ..state.random_streams import RandomState, reseed
from .base import LowerProblem, require_finite
from .product import Product, Status
from .value import Rollouts, ValueHypergradient, seed_of, standard_error

BASELINES = ("none", "start", "leave_one_out")


@dataclass(frozen=True)
class Reinforce(ValueHypergradient):
    """``1/n Σ_k (F_k - b_k) Σ_t ∇_θ log p_θ(a_t)`` over ``n`` runs of the loop.

    The lower problem's ``training_step`` returns a mapping with ``"loss"`` and ``"log_prob"``, the
    log-probability of the decisions it drew for the batch (one number, or one per decision),
    computed with the upper problem. It must draw from the global random streams. ``θ`` may enter
    the loss through the decisions only: any other dependence is not differentiated. ::

        def training_step(self, batch):
            inputs, labels = batch
            keep = torch.distributions.Bernoulli(self.policy(inputs))
            kept = keep.sample()
            losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
            return {"loss": (kept * losses).mean(), "log_prob": keep.log_prob(kept)}

    The first run replays the last loop with its batches and random numbers, hence the same
    decisions. Each further run draws new decisions from the same start and on the same batches,
    and costs as much as the loop. Autograd gives the direct gradient ``∂F/∂θ``; it is zero where
    the upper loss has no graph.

    The status holds ``"standard error"``, as for
    :class:`~metaweight.problems.hypergradients.ZeroOrder`.

    Args:
        baseline: ``b``. ``"leave_one_out"``: the mean ``F`` of the other runs, which removes the
            variance due to the batch and to the usual progress of a loop. ``"start"``: ``F`` at
            the start of the loop, for a single run; removes only that due to the batch.
            ``"none"``: 0.
        samples: ``n``, the number of runs.
        seed: Seed of the further runs; the global random streams are preserved.
    """

    baseline: str = "leave_one_out"
    samples: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("Reinforce", "baseline", self.baseline, BASELINES)
        require_count("Reinforce", "seed", self.seed, least=0)
        least = 2 if self.baseline == "leave_one_out" else 1
        if not is_count(self.samples, least):
            raise ConfigurationError(
                f"Reinforce(baseline={self.baseline!r}, samples={self.samples!r}) needs samples of "
                f"at least {least}; raise it, or use baseline='start' for a single run."
            )

    def passes(self, lower: LowerProblem) -> str:
        number = self.samples * lower.optimizer_step.per_loop
        return f"{number} forward and {number} backward passes"

    def check(self, lower: LowerProblem) -> None:
        super().check(lower)
        if lower.number_of_processes > 1:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for Reinforce in {lower.number_of_processes} "
                "processes, which draw different decisions, so that no process has the score of "
                "all; use one process, or type='zero_order'."
            )

    def estimate(
        self, lower: LowerProblem, value: Callable[[], Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        losses: list[Tensor] = []
        scores: list[list[Tensor]] = []
        with Rollouts(lower, upper_parameters) as rollouts:
            updates = rollouts.updates
            offset = self._offset(rollouts, value)
            for number in range(self.samples):
                score = _Score(lower.name, upper_parameters)
                again = self._redrawn(lower, updates, number) if number else updates
                rollouts.run(again, observe=score.add)
                losses.append(value() - offset)
                scores.append(score.total)
        advantages = torch.stack(losses)
        if self.baseline == "leave_one_out":
            others = (advantages.sum() - advantages) / (self.samples - 1)
            advantages = advantages - others
        terms = [vectors.scale(s, a) for s, a in zip(scores, advantages, strict=True)]
        mean = [torch.stack(entries).mean(0) for entries in zip(*terms, strict=True)]
        require_finite(
            mean, lower, "Reinforce", "keep probabilities away from 0 and the upper loss finite"
        )
        values = {}
        if self.samples > 1:
            squares = torch.stack([vectors.norm(term) ** 2 for term in terms]).sum()
            values["standard error"] = standard_error(squares, mean, self.samples)
        return Product(mean, Status("Reinforce", len(updates), values=values))

    def _offset(self, rollouts: Rollouts, value: Callable[[], Tensor]) -> Tensor | float:
        if self.baseline != "start":
            return 0.0
        rollouts.restore_start()
        return value()

    def _redrawn(
        self, lower: LowerProblem, updates: Sequence[RecordedUpdate], number: int
    ) -> list[RecordedUpdate]:
        """Return the steps with new random numbers."""
        device = lower.weights[0].device
        found = []
        for place, update in enumerate(updates):
            steps: list[RecordedStep] = []
            for micro, step in enumerate(update.steps):
                keys = (self.seed, lower.name, lower.count, number, place, micro)
                steps.append(replace(step, random=_fresh_streams(seed_of(*keys), device)))
            found.append(replace(update, steps=steps))
        return found


class _Score:
    """Adds up ``∇_θ log p_θ(a_t)`` over the steps of a run."""

    def __init__(self, name: str, upper_parameters: Sequence[Tensor]) -> None:
        self.total = [torch.zeros_like(t) for t in upper_parameters]
        self._name = name
        self._wanted = upper_parameters

    def add(self, output: Mapping[str, Any]) -> None:
        """Add the score of one micro-batch, given what ``training_step`` returned."""
        log_prob = output.get("log_prob")
        if not isinstance(log_prob, Tensor) or not log_prob.requires_grad:
            received = (
                "no tensor under 'log_prob'"
                if not isinstance(log_prob, Tensor)
                else ("a 'log_prob' that depends on no parameter that requires a gradient")
            )
            raise LossError(
                f"Problem {self._name!r} asks for Reinforce, but its training_step "
                f"returned {received}; return a dictionary with the loss under 'loss' and the "
                "log-probability of its decisions, computed with the upper problem, under "
                "'log_prob'."
            )
        found = torch.autograd.grad(
            log_prob.sum(), self._wanted, retain_graph=True, allow_unused=True
        )
        self.total = vectors.add(self.total, vectors.fill_none(found, self._wanted))


def _fresh_streams(seed: int, device: torch.device) -> RandomState:
    """Return random streams that begin at a seed; also sets the global ones to it."""
    reseed(device, seed)
    return RandomState(device)
