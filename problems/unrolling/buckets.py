"""Parameters that one call of an update rule, or of its adjoint, treats as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import vectors
from ..recording.recorded_steps import OptimizerMoment


def floating_state(p: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entries that are no counters or other single numbers of the optimizer, detached
    and requiring a gradient."""
    return {
        key: value.detach().requires_grad_()
        for key, value in state.items()
        if isinstance(value, Tensor) and _is_moment(p, key, value)
    }


def _is_moment(p: Tensor, key: str, value: Tensor) -> bool:
    floating = value.is_floating_point() or value.is_complex()
    return floating and key != "step" and (value.shape == p.shape or value.ndim > 0)


def buckets(
    moment: OptimizerMoment, parameters: Sequence[Tensor], *, together: bool = True
) -> list[list[Tensor]]:
    """Group parameters that one call of a rule can update together, or none of them."""
    buckets: dict[Any, list[Tensor]] = {}
    for p in parameters:
        key = (id(moment.settings[p]), p.dtype, p.device, tuple(sorted(moment.states[p])))
        buckets.setdefault(key if together else id(p), []).append(p)
    return list(buckets.values())


def flat(
    tensors: Mapping[Tensor, Tensor], bucket: Sequence[Tensor], *, shaped: bool = False
) -> Tensor:
    """Return the entries of the parameters of a bucket, as :func:`joined` does."""
    return joined([tensors[p] for p in bucket], shaped=shaped)


def joined(tensors: Sequence[Tensor], *, shaped: bool = False) -> Tensor:
    """Return all entries in single precision or better, in one vector; of one tensor in its shape
    if it is to be ``shaped``.

    In 16 bits ``1 - β₂``, the first bias correction of Adam, would be 0.
    """
    found = tensors[0] if shaped else vectors.flat(tensors)
    return found.float() if found.dtype.itemsize < 4 else found


def flat_state(
    bucket: Sequence[Tensor],
    vectors_: Mapping[Tensor, dict[str, Tensor]],
    moment: OptimizerMoment,
    *,
    shaped: bool = False,
) -> dict[str, Any]:
    """Return the state of the parameters of a bucket, moments as :func:`joined` returns them."""
    found: dict[str, Any] = {}
    for key, value in moment.states[bucket[0]].items():
        if key in vectors_[bucket[0]]:
            found[key] = joined([vectors_[p][key] for p in bucket], shaped=shaped)
        elif isinstance(value, Tensor) and len(bucket) > 1:
            counts = [
                moment.states[p][key].to(p.device).expand(vectors.real(p).numel()) for p in bucket
            ]
            found[key] = torch.cat(counts)
        elif value is not None:
            found[key] = value
    return found


def entry(
    states: Mapping[Tensor, Mapping[str, Tensor]], p: Tensor, key: str, like: Tensor | None = None
) -> Tensor:
    """Return an entry of a parameter's cotangents; where it is absent, zeros of the shape of the
    parameter or of ``like``."""
    value = states.get(p, {}).get(key)
    return torch.zeros_like(p if like is None else like) if value is None else value
