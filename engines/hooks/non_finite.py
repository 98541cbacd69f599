"""Policies for a loss, gradient or hypergradient that is not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import ConfigurationError, NonFiniteError, Problem, StepResult
from metaweight.problems.base.settings import is_count

from .base import Hook
from .faults import find_fault

if TYPE_CHECKING:
    from ..engine import Engine

POLICIES = ("raise", "skip", "stop")
_UNCHANGED = "Parameters, buffers and optimizer are as they were before the step. "
_SKIP = "EngineConfig(non_finite='skip') skips such steps."


class NonFinite(Hook):
    """Checks every loss, gradient and hypergradient before the optimizer steps.

    When one is not finite, parameters, buffers and optimizer stay as they were before the step:

    - ``"raise"``: a :class:`NonFiniteError` names the problem, its step, which of the three it is
      and through which lower problem, and describes the batch.
    - ``"skip"``: the optimizer step is skipped, counted and logged. All micro-batches of an
      accumulated step are dropped with a bad one. A hypergradient goes through the steps that were
      taken; where a lower problem has none left, the upper step is skipped and counted too. A
      hypergradient that could not be formed (``HypergradientError``) counts as not finite.
    - ``"stop"``: nothing more is changed in this iteration, steps of other problems included. Then
      the run ends, with a checkpoint if there is a ``checkpoint_dir``. ``run(resume="auto")``
      continues with the next batch.

    In all cases schedulers and counters advance; buffers are as before the bad batch, random
    streams and loaders have advanced. With ``"fp16"`` the loss scaler skips steps whose gradient
    overflows by its scale: that is not a fault, unless the loss is not finite or the scale has
    reached 1.

    The decision is needed before the step is taken, so the host waits for the device once a batch.
    Several processes take the same decision at the same step, by exchanging one number a batch: a
    value that is not finite in one of them counts for all, and the message gives the number of the
    process and its batch. ``EngineConfig(non_finite="skip")`` is short for this hook.

    Args:
        policy: ``"raise"``, ``"skip"`` or ``"stop"``.
        in_a_row: Optimizer steps of one problem that may be skipped in a row under ``"skip"``,
            after which a :class:`NonFiniteError` is raised; ``None`` for any number.

    Attributes:
        skipped: Number of skipped optimizer steps, by the problem's name.

    Raises:
        ConfigurationError: For another policy, or a number below 1.
    """

    optional = True
    reads_hypergradients = True

    def __init__(self, policy: str = "raise", *, in_a_row: int | None = 50) -> None:
        if policy not in POLICIES:
            raise ConfigurationError(
                f"NonFinite(policy={policy!r}) is not one of {', '.join(POLICIES)}; choose one of "
                "these."
            )
        if in_a_row is not None and not is_count(in_a_row, least=1):
            raise ConfigurationError(
                f"NonFinite(in_a_row={in_a_row!r}) must be an integer of at least 1, or None for "
                "any number."
            )
        self.policy = policy
        self.in_a_row = in_a_row
        self.skipped: Counter[str] = Counter()
        self._streak: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self._ending: str | None = None

    def run_start(self, engine: Engine) -> None:
        """Clear the reason why an earlier run ended."""
        self._ending = None

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        """Return whether loss and gradient are finite.

        Raises:
            NonFiniteError: Under ``"raise"``, when they are not.
        """
        if self._ending is not None:
            return False
        if result.error is not None and self.policy == "raise":
            return True
        fault = find_fault(problem, result, engine.processes)
        if fault is None:
            return True
        if self.policy == "raise":
            raise _error(problem, f"{fault.sentence} {_UNCHANGED}{fault.remedy}; {_SKIP}")
        self._last[problem.name] = fault.sentence
        if self.policy == "stop":
            self._ending = f"{fault.sentence} The run ends before that step."
        return False

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        """Count the skipped step, and log it.

        Raises:
            NonFiniteError: After too many in a row.
        """
        name = problem.name
        if self._ending is not None:
            return
        self.skipped[name] += 1
        self._streak[name] += 1
        reason = self._last.pop(name, None) or _nothing_to_differentiate(problem)
        if self._streak[name] == self.in_a_row:
            raise _error(
                problem,
                f"The last {self.in_a_row} optimizer steps of problem {name!r} were skipped; last "
                f"reason: {reason} Restart from an earlier checkpoint, with a smaller learning "
                "rate or Config(gradient_clipping=...).",
            )
        number = self.skipped[name]
        # Warned at 1, 2, 4, 8, … skipped steps.
        if number & (number - 1) == 0:
            engine.logger.warning(f"{reason} Optimizer step skipped, {number} so far.")
        engine.logger.log({"skipped": number}, tag=f"non_finite/{name}", step=problem.count)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Reset the count of consecutive skipped steps after a step was taken."""
        taken = problem.count % problem.config.gradient_accumulation == 0 and not result.skipped
        if taken:
            self._streak[problem.name] = 0

    def iteration_end(self, engine: Engine) -> None:
        """Save and end the run, if a fault has stopped it."""
        if self._ending is None:
            return
        # Saved before the stop is set, so that the checkpoint can be resumed.
        engine.checkpoint_hook.save_at_end(engine)
        engine.stop(self._ending)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of skipped steps."""
        return {"skipped": dict(self.skipped), "streak": dict(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.skipped = Counter(state["skipped"])
        self._streak = Counter(state["streak"])


def require_one_policy(hooks: Sequence[Hook]) -> None:
    """Refuse more than one policy.

    Raises:
        ConfigurationError: Naming the policies.
    """
    found = [hook.policy for hook in hooks if isinstance(hook, NonFinite)]
    if len(found) > 1:
        raise ConfigurationError(
            f"The engine was given {len(found)} policies about values that are not finite: "
            f"{', '.join(map(repr, found))}. Give one, by EngineConfig(non_finite=...) or as a "
            "NonFinite hook."
        )


def _nothing_to_differentiate(problem: Problem) -> str:
    skipped = [p.name for p in problem.position.lowers if p.step_state.trajectory.all_skipped]
    return (
        f"Problem {problem.name!r} has nothing to differentiate through at step {problem.count}, "
        f"since {' and '.join(map(repr, skipped)) or 'the problem below'} took no step."
    )


def _error(problem: Problem, message: str) -> NonFiniteError:
    error = NonFiniteError(message)
    error.problem, error.step = problem.name, problem.count
    return error
