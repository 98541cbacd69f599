"""Which programs can be captured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

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
from metaweight.problems.data.step_interface import counts_updates, waits_for_metric
from metaweight.problems.unrolling import owns_settings
from torch import Tensor

from .period import Period
from .rates import RATE
from .updates import require_known_update

if TYPE_CHECKING:
    from ..engine import Engine
    from ..hooks.base import Hook

METHODS = (Reweighting, FiniteDifference, Unroll, Neumann, SOBA, MASOBA)
"""Methods whose products are operations of tensors alone, and read learning rates, if at all, of
recorded steps."""
CALLBACKS = ("param_callback", "grad_callback", "on_inner_loop_start")


def require_capturable(engine: Engine, period: Period) -> None:
    """Refuse a program with something in its steps that a graph of operations would leave out.

    Raises:
        ConfigurationError: Naming the first such thing, and what to do.
    """
    for reason in (*_reasons(engine), *_reasons_between(engine, period)):
        raise ConfigurationError(
            f"EngineConfig(capture=...) takes steps without Python, but {reason}; leave that out, "
            "or capture."
        )
    for problem in engine.problems:
        require_known_update(problem)


def _reasons(engine: Engine) -> Iterator[str]:
    hooks = engine.hooks
    if engine.processes.world > 1:
        yield f"{engine.processes.world} processes take part"
    if engine.config.roll_back:
        yield "roll_back=True takes steps again"
    if engine.has_own_train_step:
        yield f"{type(engine).__name__} has a train_step of its own"
    for hook in (
        *hooks.before_steps,
        *hooks.accepting,
        *hooks.after_gradients,
        *changing(hooks.after_steps),
    ):
        yield f"the hook {type(hook).__name__} looks at each step"
    for problem in engine.problems:
        yield from _reasons_of(problem)


def _reasons_between(engine: Engine, period: Period) -> Iterator[str]:
    """Yield what is called at moments that a graph of a whole period leaves out."""
    if len(period) > 1:
        for hook in changing(engine.hooks.iteration_ends):
            yield f"the hook {type(hook).__name__} is told of iterations inside a loop"
    steps = [one.problem for one in period.steps]
    if len(steps) > 1:
        for hook in changing(engine.hooks.epoch_ends):
            yield f"the hook {type(hook).__name__} is told of epochs that end between two steps"
    for problem in engine.problems:
        own = type(problem).epoch_callback is not Problem.epoch_callback
        if (own or counts_updates(problem.scheduler)) and problem.name in steps[1:]:
            what = "an epoch_callback" if own else "a scheduler that counts epochs"
            yield f"problem {problem.name!r} has {what}, called between two steps"
        if waits_for_metric(problem.scheduler) and not engine.do_validation():
            yield f"the scheduler of problem {problem.name!r} waits for the metric of each step"


def _reasons_of(problem: Problem) -> Iterator[str]:
    name = problem.name
    for callback in CALLBACKS:
        if getattr(type(problem), callback) is not getattr(Problem, callback):
            yield f"problem {name!r} has a {callback} of its own"
    if problem.step_state.auditor is not None:
        yield f"the hypergradient through problem {name!r} is checked in some of them"
    if problem.scaler is not None:
        yield f"problem {name!r} has a loss scaler, which reads gradients"
    if problem.scheduler is not None and any(
        isinstance(group[RATE], Tensor) for group in problem.optimizer.param_groups
    ):
        yield f"problem {name!r} has a learning rate that is a tensor, and a scheduler for it"
    if owns_settings(problem):
        yield f"problem {name!r} learns settings of its optimizer, which are read in each step"
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


def moment_of(engine: Engine) -> Any:
    """Return the schedule's state and the epochs of all problems, if something is called at the end
    of an epoch that may change the program."""
    own = any(type(p).epoch_callback is not Problem.epoch_callback for p in engine.problems)
    if not (own or changing(engine.hooks.epoch_ends)):
        return None
    return engine.schedule.mark(), [list(p.epoch_counter) for p in engine.problems]


def require_same_schedule(before: Any, now: Any) -> None:
    """Refuse a change of the schedule between two moments of :func:`moment_of`.

    Raises:
        ConfigurationError: Then.
    """
    if before[0] != now[0]:
        raise ConfigurationError(
            "EngineConfig(capture=...) draws batches before the steps that they are for, and the "
            "end of an epoch has changed when upper problems step; do that in the iteration_end of "
            "a hook, or leave capture out."
        )


def changing(hooks: Iterable[Hook]) -> list[Hook]:
    """Return hooks that do more than show a run, which can be told of steps afterwards."""
    return [hook for hook in hooks if not hook.only_shows]
