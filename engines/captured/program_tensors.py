"""The tensors in which a program keeps its state between two loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base import vectors
from metaweight.problems.base.nested import leaves
from torch import Tensor

Labelled = dict[str, list[Tensor]]
ROUNDINGS = 1e4
"""Ways shorter than this many roundings of a tensor count as so long."""


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
            found += [id(p) for group in problem.optimizer.param_groups for p in group["params"]]
    return [*found, *map(settings_of, problems)]


def require_same_tensors(before: Labelled, after: Labelled) -> None:
    """Refuse a step that keeps its results in new tensors, which later ones would not read.

    Raises:
        ConfigurationError: Naming what they belong to.
    """
    for label, tensors in before.items():
        if list(map(id, tensors)) != list(map(id, after[label])):
            raise ConfigurationError(
                f"EngineConfig(capture=...) cannot capture a step that replaces tensors of {label} "
                "by others; write to them in place, such as self.mean.copy_(...), or leave capture "
                "out."
            )


def settings_of(problem: Problem) -> list[dict[str, Any]]:
    """Return the settings of the optimizer's groups that are recorded: all but learning rates."""
    groups = [] if problem.optimizer is None else problem.optimizer.param_groups
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]


def require_same_settings(problems: Sequence[Problem], before: Sequence[Any]) -> None:
    """Refuse a scheduler that changes more than learning rates.

    Raises:
        ConfigurationError: Naming it.
    """
    for problem, settings in zip(problems, before, strict=True):
        if problem.scheduler is not None and settings_of(problem) != settings:
            raise ConfigurationError(
                f"EngineConfig(capture=...) takes learning rates from schedulers, and "
                f"{type(problem.scheduler).__name__} of problem {problem.name!r} changes other "
                "settings too; let it leave them (cycle_momentum=False), or leave capture out."
            )


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
    def restore(self, *, roundings: float = 0.0, pattern: int = 0) -> None:
        """Write the values back.

        Args:
            roundings: Write them with so many roundings of their size added or subtracted.
            pattern: Which are added and which are subtracted.
        """
        for label, tensors in self.tensors.items():
            for tensor, value in zip(tensors, self.values[label], strict=True):
                tensor.copy_(value)
                # Adam counts its steps in a tensor without dimensions.
                if roundings and value.dim() and (value.is_floating_point() or value.is_complex()):
                    draw = torch.arange(value.numel(), device=value.device) * (pattern + 1)
                    signs = (draw.cos().sign() * torch.finfo(value.dtype).eps).view(value.shape)
                    tensor.add_((value * signs).to(value.dtype), alpha=roundings)

    def shares(self, other: Kept, start: Kept) -> dict[str, float]:
        """Return how far each is from ``other``, as a share of the way from ``start``."""
        return {
            label: _share(values, other.values[label], start.values[label])
            for label, values in self.values.items()
        }


def _share(values: list[Tensor], others: list[Tensor], start: list[Tensor]) -> float:
    triples = [
        [vectors.real(t) for t in triple]
        for triple in zip(values, others, start, strict=True)
        if triple[0].is_floating_point() or triple[0].is_complex()
    ]
    if not triples:
        return 0.0
    # No way is known better than its ends are rounded.
    rounding = max(torch.finfo(v.dtype).eps for v, _, _ in triples)
    wide = [_without_constants(*(t.double() for t in triple)) for triple in triples]
    if all(_is_lost(column) for column in ([v for v, _, _ in wide], [o for _, o, _ in wide])):
        return 0.0
    # Squares of large numbers are infinite, where the numbers are not.
    largest = max(float(o.abs().max()) for _, o, _ in wide if o.numel())
    unit = largest if math.isfinite(largest) and largest > 1 else 1.0
    wide = [[t / unit for t in triple] for triple in wide]
    away = float(vectors.norm([_apart(v, o) for v, o, _ in wide]))
    if away == 0:
        return 0.0
    way = float(vectors.norm([o - s for _, o, s in wide]))
    size = float(vectors.norm([o for _, o, _ in wide]))
    share = away / max(way, ROUNDINGS * rounding * size, 1e-30)
    return share if math.isfinite(share) else math.inf


def _without_constants(values: Tensor, others: Tensor, start: Tensor) -> list[Tensor]:
    """Return these with 0 where all are the same infinity, or no number: as in the buffer of a mask
    it says nothing of where a step ends. Elsewhere a way begins at 0 if its start is not finite."""
    endless = ~start.isfinite()
    stays = endless & _are_same(values, others) & _are_same(values, start)
    return [
        values.masked_fill(stays, 0),
        others.masked_fill(stays, 0),
        start.masked_fill(endless, 0),
    ]


def _is_lost(values: Sequence[Tensor]) -> bool:
    """Return whether a diverged run has left something that is no number, or infinite."""
    return not all(bool(t.isfinite().all()) for t in values)


def _apart(values: Tensor, others: Tensor) -> Tensor:
    """Return the difference, 0 where both are the same infinity or no number."""
    return (values - others).masked_fill(_are_same(values, others), 0)


def _are_same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())
