"""The adjoint of a step of :class:`torch.optim.SGD`, in closed form.

A step computes, with the recorded buffer ``b`` (or none before the first), ::

    d = ±g + κ w        b' = μ b + (1 - δ) d,  at first b' = d        w' = w - η b'

with ``w' = w - η (d + μ b')`` under Nesterov, and ``w' = w - η d`` without momentum, where ``b`` is
left as it is. It is linear in ``(w, g, b)``, so that from cotangents ``λ`` of ``w'`` and ``ν`` of
``b'`` those before it follow by a few sums, whatever the numbers in ``w``, ``g`` and ``b``::

    of b':  ν - η λ,  Nesterov: ν - η μ λ
    of d:   (1 - δ) times that,  at first: that;  Nesterov: - η λ more
    of w:   λ + κ (of d)        of g:  ±(of d)        of b:  μ (of b')
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import vectors
from ..trajectory import OptimizerMoment

BUFFER = "momentum_buffer"

Number = Tensor | float
Cotangents = dict[Tensor, Tensor]
StateCotangents = dict[Tensor, dict[str, Tensor]]


class _Cotangents(NamedTuple):
    """Of what some parameters' steps started from; the buffers' where there were any."""

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    buffers: Sequence[Tensor] | None


def sgd_adjoint(
    moment: OptimizerMoment,
    cotangents: Cotangents,
    states: StateCotangents,
    *,
    gradients_only: bool,
) -> tuple[Cotangents, Cotangents, StateCotangents]:
    """Return the cotangents of parameters, gradients and optimizer state before a step.

    Args:
        moment: The optimizer before it; only shapes of gradients and states matter.
        cotangents: ``λ``, per parameter.
        states: ``ν``, per parameter; absent entries are zero.
        gradients_only: Leave out what goes on to the step before: parameters and state.
    """
    parameters, gradients = dict(cotangents), dict[Tensor, Tensor]()
    before: StateCotangents = {p: dict(states.get(p, {})) for p in cotangents}
    for bucket in _buckets(moment, cotangents, states):
        first = bucket[0]
        later = [before[p][BUFFER] for p in bucket] if BUFFER in before[first] else None
        found = _adjoint(
            {name: _number(value) for name, value in moment.settings[first].items()},
            [cotangents[p] for p in bucket],
            later,
            is_first=moment.states[first].get(BUFFER) is None,
            gradients_only=gradients_only,
        )
        gradients.update(zip(bucket, found.gradients, strict=True))
        if not gradients_only:
            parameters.update(zip(bucket, found.parameters, strict=True))
            for position, p in enumerate(bucket):
                before[p] = {} if found.buffers is None else {BUFFER: found.buffers[position]}
    return parameters, gradients, before


def _adjoint(
    settings: Mapping[str, Any],
    of_w: list[Tensor],
    of_buffer: list[Tensor] | None,
    *,
    is_first: bool,
    gradients_only: bool,
) -> _Cotangents:
    """Return the adjoint for parameters of the same settings and the same state."""
    rate, momentum, decay = (settings[name] for name in ("lr", "momentum", "weight_decay"))
    before = of_buffer
    if _is_zero(momentum):
        of_d = vectors.scale(of_w, -rate)
    else:
        reach = rate * momentum if settings["nesterov"] else rate
        later = _plus(of_buffer, of_w, -reach)
        kept = 1.0 if is_first else 1 - settings["dampening"]
        of_d = later if _is_one(kept) else vectors.scale(later, kept)
        if settings["nesterov"]:
            of_d = _plus(of_d, of_w, -rate)
        before = None if is_first or gradients_only else vectors.scale(later, momentum)
    of_g = vectors.scale(of_d, -1.0) if settings["maximize"] else of_d
    passes = gradients_only or _is_zero(decay)
    return _Cotangents(of_w if passes else _plus(of_w, of_d, decay), of_g, before)


def _buckets(
    moment: OptimizerMoment, cotangents: Cotangents, states: StateCotangents
) -> list[list[Tensor]]:
    """Group the parameters that moved by what their adjoints have in common."""
    buckets: dict[Any, list[Tensor]] = {}
    for p in cotangents:
        if p in moment.gradients:
            started = moment.states[p].get(BUFFER) is not None
            key = (id(moment.settings[p]), started, BUFFER in states.get(p, {}))
            buckets.setdefault(key, []).append(p)
    return list(buckets.values())


def _number(setting: Any) -> Any:
    """Return a setting as a number where that waits for no device, or else with no dimensions."""
    if not isinstance(setting, Tensor):
        return setting
    return setting.item() if setting.device.type == "cpu" else setting.reshape(())


def _plus(left: list[Tensor] | None, right: list[Tensor], factor: Number) -> list[Tensor]:
    """Return ``left + factor * right``."""
    if left is None:
        return vectors.scale(right, factor)
    if isinstance(factor, Tensor):
        return vectors.add(left, vectors.scale(right, factor))
    return vectors.add(left, right, alpha=factor)


def _is_zero(setting: Number) -> bool:
    return not isinstance(setting, Tensor) and setting == 0


def _is_one(setting: Number) -> bool:
    return not isinstance(setting, Tensor) and setting == 1
