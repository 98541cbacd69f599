"""Which programs can be captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metaweight.problems import (
    MASOBA,
    SOBA,
    ConfigurationError,
    FiniteDifference,
    Neumann,
    Problem,
    Reweighting,
    Unroll,
)

from .updates import require_known_update

if TYPE_CHECKING:
    from ..engine import Engine

METHODS = (Reweighting, FiniteDifference, Unroll, Neumann, SOBA, MASOBA)
"""Methods whose products are operations of tensors alone, and read learning rates, if at all, of
recorded steps."""
CALLBACKS = ("param_callback", "grad_callback", "on_inner_loop_start")


def require_capturable(engine: Engine) -> None:
    """Refuse a program with something in its steps that a graph of operations would leave out.

    Raises:
        ConfigurationError: Naming the first such thing, and what to do.
    """
    for reason in _reasons(engine):
        raise ConfigurationError(
            f"EngineConfig(capture=...) takes steps without Python, but {reason}; leave that out, "
            "or capture."
        )
    for problem in engine.problems:
        if problem.optimizer is not None:
            require_known_update(problem)


def _reasons(engine: Engine) -> Iterator[str]:
    hooks = engine.hooks
    if engine.processes.world > 1:
        yield f"{engine.processes.world} processes take part"
    if engine.config.roll_back:
        yield "roll_back=True takes steps again"
    for hook in (
        *hooks.before_steps,
        *hooks.accepting,
        *hooks.after_gradients,
        *hooks.after_steps,
    ):
        yield f"the hook {type(hook).__name__} looks at each step"
    for problem in engine.problems:
        yield from _reasons_of(problem)


def _reasons_of(problem: Problem) -> Iterator[str]:
    name = problem.name
    for callback in CALLBACKS:
        if getattr(type(problem), callback) is not getattr(Problem, callback):
            yield f"problem {name!r} has a {callback} of its own"
    if problem.scaler is not None:
        yield f"problem {name!r} has a loss scaler, which reads gradients"
    if problem.config.hypergradient_parameters is not None:
        yield f"problem {name!r} chooses hypergradient_parameters"
    if problem.position.paths or not problem.parents:
        return
    if type(problem.hypergradient) not in METHODS:
        known = ", ".join(method.__name__ for method in METHODS)
        yield (
            f"problem {name!r} is differentiated by {type(problem.hypergradient).__name__}, of "
            f"which that is not known (it is of {known})"
        )
