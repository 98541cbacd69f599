"""How a period that is taken both ways is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from metaweight.problems import ConfigurationError, Problem
from metaweight.problems.base.nested import leaves
from torch import Tensor

from ..program.taken import Taken
from .program_tensors import Kept
from .recorded import Recorded

EXACT = 1e-6
"""Where nothing but the roundings of double precision may differ."""


PATTERNS = 3
"""Starts from which it is seen what rounding makes of a step."""
NUDGE = 4.0
"""Roundings by which these starts differ."""
ALLOWANCE = 10.0
"""Times more than what they make is taken for rounding."""


def end_elsewhere(differs: str, since: int) -> str:
    """Return what is said of a graph that ends elsewhere than Python."""
    return (
        f"EngineConfig(capture=...) took a step whose captured operations end elsewhere than "
        f"Python does: {differs}. A loss, a module or a loader depends on something that changes "
        "from step to step and is no tensor of a batch, such as a counter or a list; leave that "
        f"out, or capture. Steps since iteration {since} may have been taken so."
    )


def largest_deviation(problems: Sequence[Problem], *, compiled: bool) -> float:
    """Return how far a graph may end from Python, as a share of the way.

    Operations that are replayed are Python's own, but for optimizers; compiled kernels round
    otherwise, which finite differences enlarge.
    """
    if all(t.dtype is torch.float64 for p in problems for t in p.trainable_parameters()):
        return 1e-3 if compiled else EXACT
    return 0.05 if compiled else 1e-3


def difference(
    recorded: Recorded,
    values: Sequence[Tensor],
    start: Kept,
    expected: Kept,
    seen: Sequence[Taken],
    found: Sequence[Tensor],
    most: float,
    usual: float | None = None,
) -> tuple[str, float]:
    """Return what differs between a graph, which has just run, and Python, nothing if nothing does;
    and how far the graph has ended from Python.

    Args:
        recorded: The graph.
        values: The tensors of the batches that it was given.
        start: Where both started.
        expected: Where Python ended.
        seen: The steps that it took.
        found: The losses and metrics of the graph.
        most: How far the graph may end from Python, as a share of the way.
        usual: How far it did before, of a program that may have been changed a little since.
    """
    ended = Kept.of(recorded.tensors)
    shares = ended.shares(expected, start)
    farthest = max(shares.values())
    limit = most if usual is None else min(most, ALLOWANCE * usual)
    if farthest > limit:
        excused = by_rounding(partial(recorded.again, values), start, ended)
        over = {k: share for k, share in shares.items() if share > max(limit, excused[k])}
        if over:
            where = max(over, key=lambda label: over[label])
            return f"{where} differs by {over[where]:.2g} of the way", farthest
    same = same_metrics(seen, recorded.metrics, found, max(most, farthest))
    return "" if same else "losses or metrics differ", farthest


def by_rounding(run: Callable[[], object], start: Kept, ended: Kept) -> dict[str, float]:
    """Return how far a graph may end from Python because both round, as a share of the way, by what
    its tensors belong to.

    The graph is run from starts that differ in the last digits. A kink, such as that of a ReLU,
    can make much of these: then Python ends as far from itself.

    Args:
        run: Runs the graph.
        start: Where it starts.
        ended: Where it ended; nothing is excused where that is not finite.
    """
    found = dict.fromkeys(ended.values, 0.0)
    for pattern in range(PATTERNS):
        start.restore(roundings=NUDGE, pattern=pattern)
        run()
        for label, share in Kept.of(ended.tensors).shares(ended, start).items():
            found[label] = max(found[label], ALLOWANCE * share)
    return {label: most if math.isfinite(most) else 0.0 for label, most in found.items()}


def require_metrics_of_tensors(seen: Sequence[Taken]) -> None:
    """Refuse metrics that Python makes.

    Raises:
        ConfigurationError: Naming the first.
    """
    for taken in seen:
        for name, value in taken.metrics.items():
            for part in leaves(value):
                if not isinstance(part, Tensor):
                    raise ConfigurationError(
                        f"EngineConfig(capture=...) takes steps without Python, and the metric "
                        f"{name!r} of problem {taken.problem!r} is a {type(part).__name__}, which "
                        "would stay as it is; return a tensor, leave it out, or leave capture out."
                    )


def same_metrics(
    seen: Sequence[Taken], forms: Sequence[Mapping[str, Any]], found: Sequence[Tensor], most: float
) -> bool:
    """Return whether the losses and metrics of steps are those that a graph found."""
    if any(taken.metrics.keys() != form.keys() for taken, form in zip(seen, forms, strict=True)):
        return False
    expected = [t for taken in seen for t in (taken.loss, *leaves(taken.metrics))]
    # After these the graph returns whether something is to be refused.
    pairs = zip(expected, found, strict=False)
    return len(expected) <= len(found) and all(
        isinstance(a, Tensor)
        and a.shape == b.shape
        and bool((torch.isclose(a.detach(), b, most, most) | ~(a.isfinite() | b.isfinite())).all())
        for a, b in pairs
    )
