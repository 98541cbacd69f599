"""What is not finite in a step, found by all processes together and told in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metaweight.problems import Problem, StepResult
from metaweight.problems.data import batch_digest
from metaweight.problems.data.batch_digest import not_finite_in
from metaweight.problems.step.finiteness import Finiteness, finiteness

from ..distributed.processes import Processes

FINE, OVERFLOW, AT_FAULT = range(3)
NOT_FORMED = Finiteness(loss=True, gradient=False)
# Of more processes the batches are not described.
MOST = 4


@dataclass(frozen=True)
class Seen:
    """What one process sees of a step that is at fault.

    Attributes:
        rank: Number of the process.
        found: What is finite there.
        loss: Its loss.
        batch: Its batch, in a line.
        spoilt: How many values of the batch are not finite.
        error: Why its hypergradient could not be formed, if that is the fault.
    """

    rank: int
    found: Finiteness
    loss: float
    batch: str
    spoilt: int
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
        """What happened."""
        return f"{self.what} {self.place}"


def look_for_fault(problem: Problem, result: StepResult, processes: Processes) -> Fault | None:
    """Return what is at fault in the step under way; in all processes or in none.

    Reads the host once; of several processes each tells the others one number, and more where
    there is a fault. An overflow that the loss scaler handles is noted in ``result`` and no fault.
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
        spoilt=not_finite_in(problem.cur_batch),
        error=None if result.error is None else str(result.error),
    )
    return _told(problem, processes.gather(own))


def _told(problem: Problem, everyone: Sequence[Seen]) -> Fault:
    name, several = problem.name, len(everyone) > 1
    through = list(dict.fromkeys(lower for seen in everyone for lower in seen.found.culprits))
    where: Callable[[Sequence[Seen]], str] = _processes if several else lambda seen: ""
    remedy = "Lower the learning rate, or use Config(gradient_clipping=...)"
    if everyone[0].error is not None:
        blamed = [seen for seen in everyone if seen.spoilt] or list(everyone)
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
        # Finite numbers may have a mean that is not.
        blamed = [seen for seen in everyone if not seen.found.own] or list(everyone)
        what = f"The gradient of problem {name!r} is not finite{where(blamed)}."
    if any(seen.spoilt for seen in blamed):
        remedy = "The batch itself holds values that are not finite: mend the data"
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
