"""What ``step`` of an optimizer or a scheduler wants to be called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from ..base.errors import ConfigurationError


def require_plain_step(problem: str, optimizer: object) -> None:
    """Refuse an optimizer whose step cannot be taken from the gradient alone.

    Raises:
        ConfigurationError: Naming the problem, the optimizer and what it wants.
    """
    for inner in _with_wrapped(optimizer, ("optimizer", "base_optimizer", "_optimizer")):
        wanted = required_arguments(inner)
        if all(callable(getattr(inner, n, None)) for n in ("first_step", "second_step")):
            wanted = ["a second gradient (first_step, second_step)"]
        elif callable(getattr(inner, "set_closure", None)):
            wanted = ["a closure (set_closure)"]
        if wanted:
            raise ConfigurationError(
                f"{type(inner).__name__}, the optimizer of problem {problem!r}, wants "
                f"{', '.join(wanted)} in each step, to compute the loss again; the engine computes "
                "the gradient once, hypergradients included, and calls step(). Use an optimizer "
                "that takes its step from the gradient, such as SGD or AdamW, or override "
                "custom_optimizer_step."
            )


def require_known_step(problem: str, scheduler: object) -> None:
    """Refuse a scheduler that waits for something the engine does not give it.

    Raises:
        ConfigurationError: Naming the problem, the scheduler and what it wants.
    """
    if waits_for_metric(scheduler):
        return
    wanted = required_arguments(scheduler)
    if counts_updates(scheduler):
        measured = waits_for_metric(getattr(scheduler, "lr_scheduler", None))
        wanted = ["metric"] if measured else []
    if wanted:
        raise ConfigurationError(
            f"{type(scheduler).__name__}, the scheduler of problem {problem!r}, wants "
            f"{', '.join(wanted)} in step(); the engine gives a metric to torch's "
            "ReduceLROnPlateau, numbers of updates and epochs to schedulers with step_update() as "
            "in timm, and calls step() of all others. Use one of these."
        )


def required_arguments(stepping: Any) -> list[str]:
    """Return the names of the arguments that ``step`` of an object cannot be called without."""
    # torch's schedulers put a function of another signature on the optimizer itself.
    of_class = getattr(type(stepping), "step", None)
    try:
        found = list(inspect.signature(of_class or stepping.step).parameters.values())
    except (TypeError, ValueError):
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = found[1:] if of_class is not None else found
    return [a.name for a in given if a.default is a.empty and a.kind not in several]


def waits_for_metric(scheduler: object) -> bool:
    """Return whether the scheduler steps on a measured value instead of a count."""
    kind = torch.optim.lr_scheduler.ReduceLROnPlateau
    # Asked in every step, and few wrap another.
    if getattr(scheduler, "scheduler", None) is None:
        return isinstance(scheduler, kind)
    return any(isinstance(inner, kind) for inner in _with_wrapped(scheduler, ("scheduler",)))


def counts_updates(scheduler: object) -> bool:
    """Return whether the scheduler is told numbers of updates and epochs, as those of timm are."""
    return callable(getattr(scheduler, "step_update", None))


def _with_wrapped(outer: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """Yield an object, and those that it wraps as an attribute of one of these names."""
    seen: list[Any] = []
    while callable(getattr(outer, "step", None)) and not any(outer is each for each in seen):
        seen.append(outer)
        yield outer
        outer = next((v for n in names if (v := getattr(outer, n, None)) is not None), None)
