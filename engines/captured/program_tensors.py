"""The tensors in which a program keeps its state between two loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from metaweight.problems import Problem
from metaweight.problems.base import vectors
from metaweight.problems.base.nested import leaves
from torch import Tensor

Labelled = dict[str, list[Tensor]]


def tensors_of(problems: Sequence[Problem]) -> Labelled:
    """Return the tensors of modules, optimizers and methods, by what they belong to."""
    found: Labelled = {}
    for problem in problems:
        name = problem.name
        found[f"the module of {name!r}"] = [*problem.module.parameters(), *problem.module.buffers()]
        optimizer = problem.optimizer
        states = [] if optimizer is None else [leaves(s) for s in optimizer.state.values()]
        found[f"the optimizer of {name!r}"] = [
            t for state in states for t in state if isinstance(t, Tensor)
        ]
        found[f"the method of {name!r}"] = [
            t for t in leaves(problem.step_state.method_states.kept) if isinstance(t, Tensor)
        ]
    return found


def looks_of(problems: Sequence[Problem]) -> list[Any]:
    """Return what operations are recorded for, of a program's tensors, modules and optimizers, to
    be compared with that of another time."""
    found: list[Any] = [id(t) for tensors in tensors_of(problems).values() for t in tensors]
    for problem in problems:
        found += [p.requires_grad for p in problem.module.parameters()]
        found += [module.training for module in problem.module.modules()]
        if problem.optimizer is not None:
            for group in problem.optimizer.param_groups:
                found.append({k: v for k, v in group.items() if k not in ("params", "lr")})
                found += [id(p) for p in group["params"]]
    return found


@dataclass(frozen=True)
class Kept:
    """A copy of the values of tensors.

    Attributes:
        tensors: The tensors.
        values: Their values when the copy was made.
    """

    tensors: Labelled
    values: Labelled

    @classmethod
    def of(cls, tensors: Labelled) -> Kept:
        """Return a copy of the present values."""
        return cls(tensors, {k: [t.detach().clone() for t in ts] for k, ts in tensors.items()})

    @torch.no_grad()
    def restore(self) -> None:
        """Write the values back."""
        for label, tensors in self.tensors.items():
            for tensor, value in zip(tensors, self.values[label], strict=True):
                tensor.copy_(value)

    def deviation(self, other: Kept, start: Kept) -> tuple[str, float]:
        """Return what differs most from ``other``, and by how much of the way from ``start``."""
        found = {
            label: _share(values, other.values[label], start.values[label])
            for label, values in self.values.items()
        }
        worst = max(found, key=lambda label: found[label])
        return worst, found[worst]


def _share(values: list[Tensor], others: list[Tensor], start: list[Tensor]) -> float:
    triples = [
        (v.double(), o.double(), s.double())
        for v, o, s in zip(values, others, start, strict=True)
        if v.is_floating_point()
    ]
    if not triples:
        return 0.0
    away = float(vectors.norm([v - o for v, o, _ in triples]))
    way = float(vectors.norm([o - s for _, o, s in triples]))
    size = float(vectors.norm([o for _, o, _ in triples]))
    share = away / max(way, 1e-6 * size, 1e-30)
    return share if math.isfinite(share) else math.inf
