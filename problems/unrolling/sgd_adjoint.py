"""The adjoint of a step of :class:`torch.optim.SGD`, in closed form.

A step computes, with the recorded buffer ``b`` (or none before the first), ::

    d = ±g + κ w        b' = μ b + (1 - δ) d,  at first b' = d        w' = w - η b'

with ``w' = w - η (d + μ b')`` for Nesterov, and ``w' = w - η d`` without momentum, where ``b`` does
not change. The step is linear in ``(w, g, b)``, so the cotangents before it are linear in ``λ`` of
``w'`` and ``ν`` of ``b'`` and do not depend on the values of ``w``, ``g`` and ``b``::

    of b':  c = ν - η λ,  Nesterov: c = ν - η μ λ
    of d:   e = (1 - δ) c,  at first e = c;  Nesterov: minus η λ
    of w:   λ + κ e        of g:  ±e        of b:  μ c
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import vectors
from ..recording.recorded_steps import OptimizerMoment

BUFFER = "momentum_buffer"

Number = Tensor | float
Cotangents = dict[Tensor, Tensor]
StateCotangents = dict[Tensor, dict[str, Tensor]]


class SgdAdjoint(NamedTuple):
    """Cotangents of the inputs of a step; see :class:`~.adjoint.UpdateAdjoint`."""

    parameters: Cotangents
    gradients: Cotangents
    states: StateCotangents
    factor: Number = 1.0


class _Cotangents(NamedTuple):
    """Cotangents of the inputs of a step, for parameters of one bucket."""

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    buffers: Sequence[Tensor] | None


def sgd_adjoint(
    moment: OptimizerMoment,
    cotangents: Cotangents,
    states: StateCotangents,
    *,
    gradients_only: bool,
    spare: StateCotangents | None = None,
) -> SgdAdjoint:
    """Return the cotangents of parameters, gradients and optimizer state before a step.

    Args:
        moment: The optimizer before the step; values of gradients and states are not read.
        cotangents: ``λ``, per parameter.
        states: ``ν``, per parameter; absent entries are zero. Overwritten, since new memory takes
            longer than the arithmetic.
        gradients_only: Leave out the cotangents of parameters and state. Those of gradients may
            lack ``factor``.
        spare: Memory for the cotangents of the state before the step.
    """
    buckets = _buckets(moment, cotangents, states)
    if gradients_only and len(buckets) == 1 and not any(states.values()):
        moved = {p: cotangents[p] for p in buckets[0]}
        return SgdAdjoint(cotangents, moved, {}, _step(moment, buckets[0][0]).multiple)
    parameters, gradients = dict(cotangents), dict[Tensor, Tensor]()
    before: StateCotangents = {p: dict(states.get(p, {})) for p in cotangents}
    for bucket in buckets:
        first = bucket[0]
        later = [before[p][BUFFER] for p in bucket] if BUFFER in before[first] else None
        found = _adjoint(
            _step(moment, first),
            [cotangents[p] for p in bucket],
            later,
            [(spare or {}).get(p, {}).get(BUFFER) for p in bucket],
            is_first=moment.states[first].get(BUFFER) is None,
            gradients_only=gradients_only,
        )
        gradients.update(zip(bucket, found.gradients, strict=True))
        if not gradients_only:
            parameters.update(zip(bucket, found.parameters, strict=True))
            for position, p in enumerate(bucket):
                before[p] = {} if found.buffers is None else {BUFFER: found.buffers[position]}
    return SgdAdjoint(parameters, gradients, before)


class _Step(NamedTuple):
    """Coefficients of a step: ``b' = μ b + kept d``, ``w' = w - reach b' - extra d``."""

    momentum: Number
    kept: Number
    reach: Number
    extra: Number
    decay: Number
    sign: float

    @property
    def multiple(self) -> Number:
        """The factor of ``λ`` in the cotangent of ``g``, if ``ν`` is zero."""
        return -self.sign * (self.kept * self.reach + self.extra)


def _step(moment: OptimizerMoment, p: Tensor) -> _Step:
    settings = moment.settings[p]
    rate, momentum = _number(settings["lr"]), _number(settings["momentum"])
    kept: Number = 1.0
    if moment.states[p].get(BUFFER) is not None:
        kept = 1 - _number(settings["dampening"])
    reach: Number = 0.0 if _is(momentum, 0) else rate
    extra: Number = rate if _is(momentum, 0) else 0.0
    if settings["nesterov"]:
        reach, extra = rate * momentum, rate
    sign = -1.0 if settings["maximize"] else 1.0
    return _Step(momentum, kept, reach, extra, _number(settings["weight_decay"]), sign)


def _adjoint(
    step: _Step,
    of_w: list[Tensor],
    of_buffer: list[Tensor] | None,
    spare: Sequence[Tensor | None],
    *,
    is_first: bool,
    gradients_only: bool,
) -> _Cotangents:
    """Return the adjoint for parameters with the same settings and state entries."""
    before = of_buffer
    if _is(step.momentum, 0):
        of_d = vectors.scale(of_w, -step.extra)
    else:
        later = _plus_in_place(of_buffer, of_w, -step.reach)
        of_d = later if _is(step.kept, 1) else vectors.scale(later, step.kept)
        if not _is(step.extra, 0):
            of_d = _plus(of_d, of_w, -step.extra)
        before = None if is_first or gradients_only else _scaled_into(spare, later, step.momentum)
    of_g = vectors.scale(of_d, -1.0) if step.sign < 0 else of_d
    passes = gradients_only or _is(step.decay, 0)
    return _Cotangents(of_w if passes else _plus(of_w, of_d, step.decay), of_g, before)


def _buckets(
    moment: OptimizerMoment, cotangents: Cotangents, states: StateCotangents
) -> list[list[Tensor]]:
    """Group parameters that have a gradient by settings and state entries."""
    buckets: dict[Any, list[Tensor]] = {}
    for p in cotangents:
        if p in moment.gradients:
            started = moment.states[p].get(BUFFER) is not None
            key = (id(moment.settings[p]), started, BUFFER in states.get(p, {}))
            buckets.setdefault(key, []).append(p)
    return list(buckets.values())


def _number(setting: Any) -> Number:
    """Return a setting as a float, or as a 0-dim tensor if it is a tensor, which is not read."""
    return setting.reshape(()) if isinstance(setting, Tensor) else float(setting)


def _plus(left: list[Tensor], right: list[Tensor], factor: Number) -> list[Tensor]:
    """Return ``left + factor * right``."""
    if isinstance(factor, Tensor):
        return vectors.add(left, vectors.scale(right, factor))
    return vectors.add(left, right, alpha=factor)


def _plus_in_place(left: list[Tensor] | None, right: list[Tensor], factor: Number) -> list[Tensor]:
    """Return ``left + factor * right``, computed in ``left`` unless that is ``None``."""
    if left is None:
        return vectors.scale(right, factor)
    if isinstance(factor, Tensor):
        torch._foreach_add_(left, vectors.scale(right, factor))
    else:
        torch._foreach_add_(left, right, alpha=factor)
    return left


def _scaled_into(
    memory: Sequence[Tensor | None], vector: list[Tensor], factor: Number
) -> list[Tensor]:
    """Return ``factor * vector``, in ``memory`` if that is given and not the vector's own."""
    if any(t is None or t is v for t, v in zip(memory, vector, strict=True)):
        return vectors.scale(vector, factor)
    return [torch.mul(v, factor, out=t) for v, t in zip(vector, memory, strict=True)]


def _is(setting: Number, number: float) -> bool:
    """Return whether a setting equals a number; ``False`` for tensors, to avoid synchronising."""
    return not isinstance(setting, Tensor) and setting == number
