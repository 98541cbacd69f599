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
from ..base.vectors import accumulation_dtype
from ..recording.recorded_steps import OptimizerMoment

BUFFER = "momentum_buffer"

Number = Tensor | float
Cotangents = dict[Tensor, Tensor]
StateCotangents = dict[Tensor, dict[str, Any]]


class SgdAdjoint(NamedTuple):
    """Cotangents of the inputs of a step; see :class:`~.adjoint.UpdateAdjoint`."""

    parameters: Cotangents
    gradients: Cotangents
    states: StateCotangents
    factor: Number = 1.0


class Multiple(NamedTuple):
    """A vector times a number, which is left to do.

    Back through steps, the cotangent of a buffer is ``Σ_t a_t λ_t``. As a multiple of a mean of the
    ``λ_t`` it takes one pass over the memory a step, and no memory but its own.
    """

    vector: list[Tensor]
    factor: Number


class _Cotangents(NamedTuple):
    """Cotangents of the inputs of a step, for parameters of one bucket."""

    parameters: Sequence[Tensor]
    gradients: Multiple
    buffers: Multiple | None


def sgd_adjoint(
    moment: OptimizerMoment,
    cotangents: Cotangents,
    states: StateCotangents,
    *,
    gradients_only: bool,
) -> SgdAdjoint:
    """Return the cotangents of parameters, gradients and optimizer state before a step.

    ``factor`` is still to be applied to those of gradients. Those of the state are each a
    :class:`Multiple`, of one tensor.

    Args:
        moment: The optimizer before the step; values of gradients and states are not read.
        cotangents: ``λ``, per parameter.
        states: ``ν``, per parameter, as this function returned them for the step after; absent
            entries are zero. Overwritten, since new memory takes longer than the arithmetic.
        gradients_only: Leave out the cotangents of parameters and state.
    """
    parameters, gradients = dict(cotangents), dict[Tensor, Tensor]()
    before: StateCotangents = {p: dict(states.get(p, {})) for p in cotangents}
    buckets = _buckets(moment, cotangents, states)
    factor: Number = 1.0
    for bucket in buckets:
        first = bucket[0]
        found = _adjoint(
            _step(moment, first),
            [cotangents[p] for p in bucket],
            _joined([before[p].get(BUFFER) for p in bucket]),
            is_first=moment.states[first].get(BUFFER) is None,
            gradients_only=gradients_only,
        )
        vector, factor = found.gradients
        if len(buckets) > 1 or torch.float16 in {p.dtype for p in bucket}:
            # The product along a vector that waits for its factor could overflow in half precision.
            vector, factor = vectors.scale(vector, factor), 1.0
        gradients.update(zip(bucket, vector, strict=True))
        if not gradients_only:
            parameters.update(zip(bucket, found.parameters, strict=True))
            before.update(zip(bucket, _split(found.buffers, len(bucket)), strict=True))
    return SgdAdjoint(parameters, gradients, before, factor)


class _Step(NamedTuple):
    """Coefficients of a step: ``b' = μ b + kept d``, ``w' = w - reach b' - extra d``."""

    momentum: Number
    kept: Number
    reach: Number
    extra: Number
    decay: Number
    sign: float


def _step(moment: OptimizerMoment, p: Tensor) -> _Step:
    settings, of = moment.settings[p], accumulation_dtype(vectors.real(p))
    rate, momentum = _number(settings["lr"], of), _number(settings["momentum"], of)
    kept: Number = 1.0
    if moment.states[p].get(BUFFER) is not None:
        kept = 1 - _number(settings["dampening"], of)
    reach: Number = 0.0 if _is(momentum, 0) else rate
    extra: Number = rate if _is(momentum, 0) else 0.0
    if settings["nesterov"]:
        reach, extra = rate * momentum, rate
    sign = -1.0 if settings["maximize"] else 1.0
    return _Step(momentum, kept, reach, extra, _number(settings["weight_decay"], of), sign)


def _adjoint(
    step: _Step,
    of_w: list[Tensor],
    of_buffer: Multiple | None,
    *,
    is_first: bool,
    gradients_only: bool,
) -> _Cotangents:
    """Return the adjoint for parameters with the same settings and state entries."""
    before = of_buffer
    if _is(step.momentum, 0):
        of_d = Multiple(of_w, -step.extra)
    else:
        goes_on = not (is_first or gradients_only)
        later = _minus(of_buffer, of_w, step.reach, keep=goes_on)
        of_d = Multiple(later.vector, later.factor * step.kept)
        if not _is(step.extra, 0):
            of_d = _plus_multiple(of_d, of_w, -step.extra)
        before = Multiple(later.vector, later.factor * step.momentum) if goes_on else None
    passes = gradients_only or _is(step.decay, 0)
    return _Cotangents(
        of_w if passes else vectors.add(of_w, of_d.vector, of_d.factor * step.decay),
        Multiple(of_d.vector, of_d.factor * step.sign),
        before,
    )


def _minus(
    of_buffer: Multiple | None, of_w: list[Tensor], reach: Number, *, keep: bool
) -> Multiple:
    """Return ``ν - reach λ``, computed in the memory of ``ν``.

    Args:
        of_buffer: ``ν``.
        of_w: ``λ``.
        reach: The factor of it.
        keep: The result is kept beyond the step, which changes ``λ``.
    """
    if of_buffer is None:
        return Multiple([t.clone() for t in of_w] if keep else of_w, -reach)
    vector, factor = of_buffer
    if not (isinstance(factor, Tensor) or isinstance(reach, Tensor)):
        total = factor - reach
        # Both have one sign unless a learning rate is negative.
        if total != 0 and 0 <= -reach / total <= 1:
            vectors.move_towards(vector, of_w, -reach / total)
            return Multiple(vector, total)
    for own, other in zip(vector, of_w, strict=True):
        own.mul_(factor).sub_(other * reach)
    return Multiple(vector, 1.0)


def _plus_multiple(left: Multiple, right: list[Tensor], factor: Number) -> Multiple:
    """Return ``left + factor * right``."""
    vector, known = left
    if not (isinstance(known, Tensor) or isinstance(factor, Tensor) or known == 0):
        ratio = factor / known
        # The sum takes one pass where its parts are of one size; else it could overflow.
        if abs(ratio) <= 2:
            return Multiple(vectors.add(vector, right, ratio), known)
    return Multiple(vectors.add(vectors.scale(vector, known), right, factor), 1.0)


def _joined(parts: Sequence[Multiple | None]) -> Multiple | None:
    """Return multiples of one tensor each, by the same number, as one."""
    given = [part for part in parts if part is not None]
    return Multiple([part.vector[0] for part in given], given[0].factor) if given else None


def _split(whole: Multiple | None, number: int) -> list[dict[str, Any]]:
    """Return the state's entries of each parameter."""
    if whole is None:
        return [{} for _ in range(number)]
    return [{BUFFER: Multiple([t], whole.factor)} for t in whole.vector]


def _buckets(
    moment: OptimizerMoment, cotangents: Cotangents, states: StateCotangents
) -> list[list[Tensor]]:
    """Group parameters that have a gradient by settings and state entries."""
    buckets: dict[Any, list[Tensor]] = {}
    for p in cotangents:
        if p in moment.gradients:
            started = moment.states[p].get(BUFFER) is not None
            later = states.get(p, {}).get(BUFFER)
            factor = None if later is None else later.factor
            same = id(factor) if isinstance(factor, Tensor) else factor
            buckets.setdefault((id(moment.settings[p]), started, same), []).append(p)
    return list(buckets.values())


def _number(setting: Any, dtype: torch.dtype) -> Number:
    """Return a setting as a float; if it is a tensor, which is not read, as a 0-dim one of this
    type, in which products of settings are not rounded more than vectors are."""
    if not isinstance(setting, Tensor):
        return float(setting)
    return setting.reshape(()).to(torch.promote_types(setting.dtype, dtype))


def _is(setting: Number, number: float) -> bool:
    """Return whether a setting equals a number; ``False`` for tensors, to avoid synchronising."""
    return not isinstance(setting, Tensor) and setting == number
