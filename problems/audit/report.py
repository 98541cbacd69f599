"""The report of a check of a hypergradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import vectors

BIASED = 0.5
"""Relative difference between two batches from which on a report names what averages over them."""


@dataclass(frozen=True)
class Agreement:
    """How close a hypergradient is to a reference.

    Attributes:
        relative_error: ``||a - b|| / ||b||``.
        cosine: ``<a, b> / (||a|| ||b||)``.
        norm_ratio: ``||a|| / ||b||``.
    """

    relative_error: float
    cosine: float
    norm_ratio: float

    def __str__(self) -> str:
        return (
            f"relative error {self.relative_error:.2g}, cosine {self.cosine:.4f}, "
            f"norm ratio {self.norm_ratio:.4g}"
        )


@dataclass(frozen=True)
class HypergradientReport:
    """The report on one product of a lower problem's hypergradient.

    Attributes:
        problem: Name of the lower problem.
        method: Class name of its hypergradient.
        converged: Agreement with the same method in double precision with a short displacement.
        unrolled: Agreement with the exact derivative through the recorded steps, if it exists.
        advice: Causes of errors and what to change, in words; empty if no error was found.
        found: How a linear solve went, with its residual; empty for other methods.
        another_batch: Agreement of the same solve on the batch of an earlier step, at the present
            parameters, with that on the last one: what the choice of a batch does to it. ``None``
            for other methods, and where only one batch is recorded.
    """

    problem: str
    method: str
    converged: Agreement
    unrolled: Agreement | None
    advice: tuple[str, ...]
    found: str = ""
    another_batch: Agreement | None = None

    @property
    def trustworthy(self) -> bool:
        """Whether no error was found."""
        return not self.advice

    def __str__(self) -> str:
        lines = [
            f"Hypergradient of {self.method} through problem {self.problem!r}",
            f"  against itself in double precision, converged: {self.converged}",
        ]
        if self.found:
            lines.append(f"  found by {self.found}")
        if self.another_batch is not None:
            lines.append(f"  the same solve on another batch: {self.another_batch}{self._bias}")
        if self.unrolled is not None:
            lines.append(f"  against the exact unrolled derivative: {self.unrolled}")
        lines += [f"  - {sentence}" for sentence in self.advice] or ["  nothing to blame"]
        return "\n".join(lines)

    @property
    def _bias(self) -> str:
        if self.another_batch is None or self.another_batch.relative_error < BIASED:
            return ""
        return " (that of one batch is far from the mean; SOBA() or warm=True average over many)"


def agreement(actual: Sequence[Tensor], reference: Sequence[Tensor]) -> Agreement:
    """Return the agreement of two hypergradients; synchronises with the device."""
    a, b = (
        torch.cat([vectors.real(t.detach().cpu()).double().reshape(-1) for t in v])
        for v in (actual, reference)
    )
    length, other = float(a.norm()), float(b.norm())
    if length == 0.0 and other == 0.0:
        return Agreement(0.0, 1.0, 1.0)
    error = float((a - b).norm()) / other if other else math.inf
    cosine = float(torch.dot(a, b)) / (length * other) if length and other else 0.0
    return Agreement(error, cosine, length / other if other else math.inf)
