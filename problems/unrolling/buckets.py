"""Parameters that one call of an update rule, or of its adjoint, treats as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..recording.recorded_steps import OptimizerMoment
from .rules import RULES


def floating_state(p: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entries of the parameter's shape, detached and requiring a gradient."""
    return {
        key: value.detach().requires_grad_()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == p.shape and key != "step"
    }


def buckets(
    kind: type[torch.optim.Optimizer], moment: OptimizerMoment, parameters: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Group parameters that one call of a rule can update together."""
    buckets: dict[Any, list[Tensor]] = {}
    together = kind in RULES
    for p in parameters:
        key = (id(moment.settings[p]), p.dtype, p.device, tuple(sorted(moment.states[p])))
        buckets.setdefault(key if together else id(p), []).append(p)
    return list(buckets.values())


def flat(tensors: Mapping[Tensor, Tensor], bucket: Sequence[Tensor]) -> Tensor:
    """Return the entries of the parameters of a bucket, in one vector."""
    return joined([tensors[p] for p in bucket])


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries in single precision or better, in one vector.

    In 16 bits ``1 - β₂``, the first bias correction of Adam, would be 0.
    """
    found = vectors.flat(tensors)
    return found.float() if found.dtype.itemsize < 4 else found


def flat_state(
    bucket: Sequence[Tensor], vectors_: Mapping[Tensor, dict[str, Tensor]], moment: OptimizerMoment
) -> dict[str, Any]:
    """Return the state of the parameters of a bucket, entries of their shape in one vector each."""
    found: dict[str, Any] = {}
    for key, value in moment.states[bucket[0]].items():
        if key in vectors_[bucket[0]]:
            found[key] = joined([vectors_[p][key] for p in bucket])
        elif isinstance(value, Tensor) and len(bucket) > 1:
            counts = [
                moment.states[p][key].to(p.device).expand(vectors.real(p).numel()) for p in bucket
            ]
            found[key] = torch.cat(counts)
        elif value is not None:
            found[key] = value
    return found


def entry(states: Mapping[Tensor, Mapping[str, Tensor]], p: Tensor, key: str) -> Tensor:
    """Return an entry of a parameter's cotangents, zeros where it is absent."""
    value = states.get(p, {}).get(key)
    return torch.zeros_like(p) if value is None else value
