"""Detection and description of a step that is not finite, in all processes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metaweight.problems import Problem, StepResult
from metaweight.problems.data.batch_digest import batch_digest, not_finite_in
from metaweight.problems.step.finiteness import Finiteness, finiteness

from ..distributed.processes import Processes

FINE, OVERFLOW, AT_FAULT = range(3)
NOT_FORMED = Finiteness(loss=True, gradient=False)
# The batches of at most this many processes are described.
MOST = 4


@dataclass(frozen=True)
class Seen:
    """Data of one process about a step that must not be taken.

    Attributes:
        rank: Number of the process.
        found: Finiteness of its loss and gradients.
        loss: Its loss.
        batch: Its batch, described in one line.
        non_finite_values: How many values of the batch are not finite.
        error: Why its hypergradient could not be formed, if that is the fault.
    """

    rank: int
    found: Finiteness
    loss: float
    batch: str
    non_finite_values: int
    error: str | None


@dataclass(frozen=True)
class Fault:
    """A step that must not be taken.

    Attributes:
        problem: Name of the problem.
        what: What is wrong, and in which processes.
        place: When it happened and on which batch.
        remedy: What to do.
    """

    problem: str
    what: str
    place: str
    remedy: str

    @property
    def sentence(self) -> str:
        """The fault with its place, in one sentence or two."""
        return f"{self.what} {self.place}"


def find_fault(problem: Problem, result: StepResult, processes: Processes) -> Fault | None:
    """Return the fault of the current step, the same in all processes, or ``None``.

    Waits for the device once. Several processes exchange one number each, and more when there is a
    fault. An overflow that the loss scaler handles is noted in ``result`` and is not a fault.
    """
    found = NOT_FORMED if result.error is not None else finiteness(problem, result.loss, result.own)
    level = FINE if found.whole else OVERFLOW if found.overflow else AT_FAULT
    level = processes.largest(level)
    result.overflow = level == OVERFLOW
    if level != AT_FAULT:
        return None
    own = Seen(
        rank=processes.rank,
        found=found,
        loss=float(result.loss),
        batch=batch_digest(problem.cur_batch),
        non_finite_values=not_finite_in(problem.cur_batch),
        error=None if result.error is None else str(result.error),
    )
    return _described(problem, processes.gather(own))


def _described(problem: Problem, everyone: Sequence[Seen]) -> Fault:
    name, several = problem.name, len(everyone) > 1
    through = list(dict.fromkeys(lower for seen in everyone for lower in seen.found.culprits))
    where: Callable[[Sequence[Seen]], str] = _processes if several else lambda seen: ""
    remedy = "Lower the learning rate, or use Config(gradient_clipping=...)"
    if everyone[0].error is not None:
        blamed = [seen for seen in everyone if seen.non_finite_values] or list(everyone)
        what = everyone[0].error
    elif blamed := [seen for seen in everyone if not seen.found.loss]:
        losses = [f"{seen.loss}{where([seen])}" for seen in blamed]
        what = f"The loss of problem {name!r} is {' and '.join(losses)}."
    elif through:
        blamed = [seen for seen in everyone if seen.found.culprits]
        what = (
            f"The hypergradient of problem {name!r} through {', '.join(map(repr, through))} is not "
            f"finite{where(blamed)}."
        )
        remedy = (
            "Look at engine.check_hypergradient(), lower the learning rates, or choose another "
            f"Config(type=...) of problem {through[0].split(' ')[0]!r}"
        )
    else:
        # The mean of finite numbers can be infinite.
        blamed = [seen for seen in everyone if not seen.found.own] or list(everyone)
        what = f"The gradient of problem {name!r} is not finite{where(blamed)}."
    if any(seen.non_finite_values for seen in blamed):
        remedy = "The batch itself holds values that are not finite: fix the data"
    return Fault(name, what, _place(problem, blamed, several=several), remedy)


def _place(problem: Problem, blamed: Sequence[Seen], *, several: bool) -> str:
    place = f"step {problem.count}"
    if problem.step_state.global_step is not None:
        place += f", global step {problem.step_state.global_step}"
    batches = [s.batch + (f" of process {s.rank}" if several else "") for s in blamed[:MOST]]
    more = f" and those of {len(blamed) - MOST} more" if len(blamed) > MOST else ""
    return f"It happened at {place}, on the batch {', and '.join(batches)}{more}."


def _processes(seen: Sequence[Seen]) -> str:
    ranks = ", ".join(str(s.rank) for s in seen)
    return f" in process {ranks}" if len(seen) == 1 else f" in processes {ranks}"
