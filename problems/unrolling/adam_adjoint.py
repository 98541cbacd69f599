"""The adjoint of a step of :class:`torch.optim.Adam` or ``AdamW``, in closed form.

Step ``t`` computes, with the recorded moments ``m`` and ``v``, ::

    d = ±g + κ w, decoupled: ±g       m' = β₁ m + (1-β₁) d       v' = β₂ v + (1-β₂) d²
    D = sqrt(V) / sqrt(1-β₂^t) + ε    w' = (1 - ηκ [decoupled]) w - η / (1-β₁^t) m' / D

with ``V = v'``, or ``V = max(V₀, v')`` for AMSGrad. Of cotangents ``λ`` of ``w'``, ``μ`` of ``m'``
and ``ν`` of ``v'``, with ``a = η / (1-β₁^t)``, those before the step are ::

    of m':  c = μ - a λ / D
    of V:   e = a λ m' / D² / (2 sqrt(V) sqrt(1-β₂^t)),  0 where V is 0
    of v':  f = ν + e
    of d:   h = (1-β₁) c + 2 (1-β₂) d f
    of w:   λ + κ h, decoupled: (1 - ηκ) λ      of g: ±h      of m: β₁ c      of v: β₂ f

For AMSGrad the cotangent of ``V`` goes to the larger one of ``V₀`` and ``v'``, and to both in equal
parts where they are equal.

Sources: see :mod:`.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from ..recording.recorded_steps import OptimizerMoment, RecordedUpdate
from .buckets import buckets, entry, flat, flat_state, floating_state, joined
from .rules import State
from .sgd_adjoint import Cotangents, StateCotangents

KINDS = (torch.optim.Adam, torch.optim.AdamW)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class AdamAdjoint(NamedTuple):
    """Cotangents of the inputs of a step; see :class:`~.adjoint.UpdateAdjoint`."""

    parameters: Cotangents
    gradients: Cotangents
    states: StateCotangents


@torch.no_grad()
def adam_adjoint(
    update: RecordedUpdate,
    cotangents: Cotangents,
    states: StateCotangents,
    *,
    gradients_only: bool,
) -> AdamAdjoint:
    """Return the cotangents of parameters, gradients and optimizer state before a step.

    Args:
        update: The recorded step, with parameters and optimizer.
        cotangents: ``λ``, per parameter.
        states: ``μ`` and ``ν``, per parameter; absent entries are zero.
        gradients_only: Leave out the cotangents of parameters and state.
    """
    moment = update.moment
    assert moment is not None
    moved = [p for p in cotangents if p in moment.gradients]
    parameters, gradients = dict(cotangents), dict[Tensor, Tensor]()
    before: StateCotangents = {p: dict(states.get(p, {})) for p in cotangents}
    for bucket in buckets(moment, moved):
        step = _Step(update.before_optimizer, moment, bucket)
        of_state = {
            key: joined([entry(states, p, key) for p in bucket])
            for key in MOMENTS
            if any(key in states.get(p, {}) for p in bucket)
        }
        found = step.back(flat(cotangents, bucket), of_state, gradients_only=gradients_only)
        gradients.update(zip(bucket, vectors.split(found.of_g, bucket), strict=True))
        if found.of_w is not None:
            parameters.update(zip(bucket, vectors.split(found.of_w, bucket), strict=True))
        for p in bucket:
            before[p] = {}
        for key, value in found.of_state.items():
            for p, part in zip(bucket, vectors.split(value, bucket), strict=True):
                before[p][key] = part
    return AdamAdjoint(parameters, gradients, before)


class _Before(NamedTuple):
    """Cotangents before a step, of one bucket."""

    of_w: Tensor | None
    of_g: Tensor
    of_state: dict[str, Tensor]


class _Step:
    """A recorded step of the parameters of one bucket.

    Args:
        start: Parameters before the step.
        moment: The optimizer before it.
        bucket: The parameters.
    """

    def __init__(
        self, start: Mapping[Tensor, Tensor], moment: OptimizerMoment, bucket: Sequence[Tensor]
    ) -> None:
        self._settings: Mapping[str, Any] = moment.settings[bucket[0]]
        g = flat(moment.gradients, bucket)
        known = {p: floating_state(p, moment.states[p]) for p in bucket}
        self._state: State = {
            key: value.detach() if isinstance(value, Tensor) else value
            for key, value in flat_state(bucket, known, moment).items()
        }
        settings = self._settings
        self._sign = -1.0 if settings["maximize"] else 1.0
        d = -g if settings["maximize"] else g
        self._decoupled = settings.get("decoupled_weight_decay", False)
        if not self._decoupled and settings["weight_decay"] != 0:
            d = d + settings["weight_decay"] * flat(start, bucket)
        self._d = d

    def back(
        self, of_w: Tensor, of_state: Mapping[str, Tensor], *, gradients_only: bool
    ) -> _Before:
        """Return the cotangents before the step."""
        settings, state, d = self._settings, self._state, self._d
        (beta1, beta2), rate, decay = settings["betas"], settings["lr"], settings["weight_decay"]
        count = state["step"].to(d) + 1 if "step" in state else torch.ones_like(d)
        first = (1 - beta1) * d + (beta1 * state["exp_avg"] if "exp_avg" in state else 0.0)
        second = (1 - beta2) * d * d
        if "exp_avg_sq" in state:
            second = second + beta2 * state["exp_avg_sq"]
        before = state.get("max_exp_avg_sq")
        largest = second
        if settings["amsgrad"]:
            before = torch.zeros_like(second) if before is None else before
            largest = torch.maximum(before, second)
        scale = (1 - beta2**count) ** 0.5
        deviation = largest.sqrt()
        inverse = 1 / (deviation / scale + settings["eps"])
        reach = rate / (1 - beta1**count) * of_w * inverse
        of_first = -reach
        if "exp_avg" in of_state:
            of_first = of_first + of_state["exp_avg"]
        slope = torch.where(largest == 0, 0.0, 0.5 / (deviation * scale))
        of_largest = reach * first * inverse * slope
        of_second, of_before = of_largest, None
        if settings["amsgrad"]:
            of_largest = of_largest + of_state.get("max_exp_avg_sq", 0.0)
            share = torch.where(second == before, 0.5, (second > before).to(d))
            of_second, of_before = of_largest * share, of_largest * (1 - share)
        if "exp_avg_sq" in of_state:
            of_second = of_second + of_state["exp_avg_sq"]
        of_d = (1 - beta1) * of_first + 2 * (1 - beta2) * d * of_second
        of_g = self._sign * of_d
        if gradients_only:
            return _Before(None, of_g, {})
        moved = (1 - rate * decay) * of_w if self._decoupled else of_w + decay * of_d
        earlier = {
            "exp_avg": beta1 * of_first,
            "exp_avg_sq": beta2 * of_second,
            "max_exp_avg_sq": of_before,
        }
        kept = {k: t for k, t in earlier.items() if k in state and t is not None}
        return _Before(moved, of_g, kept)
