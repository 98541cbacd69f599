"""What to do about a loss, gradient or hypergradient that is not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import ConfigurationError, NonFiniteError, Problem, StepResult
from metaweight.problems.base.settings import is_count

from .base import Hook
from .faults import look_for_fault

if TYPE_CHECKING:
    from ..engine import Engine

POLICIES = ("raise", "skip", "stop")
_UNCHANGED = "Parameters, buffers and optimizer are as they were before the step. "
_SKIP = "EngineConfig(non_finite='skip') leaves such steps out."


class NonFinite(Hook):
    """Looks at every loss, gradient and hypergradient before the optimizer steps.

    Where one is not finite, parameters, buffers and optimizer stay what they were before the step:

    - ``"raise"``: a :class:`NonFiniteError` names the problem, its step, which of the three it is
      and through which lower problem, and describes the batch.
    - ``"skip"``: the optimizer step is left out, counted and told. All micro-batches of an
      accumulated step are dropped with a bad one. A hypergradient goes through the steps that were
      taken; where a lower problem has none left, the upper step is left out and counted too. A
      hypergradient that could not be formed (``HypergradientError``) counts as not finite.
    - ``"stop"``: nothing more is changed in this iteration, steps of other problems included,
      after which the run ends, saved where there is a ``checkpoint_dir``. ``run(resume="auto")``
      then goes on with the next batch.

    Schedulers and counters go on in all cases; buffers are as before the bad batch, random streams
    and loaders have moved. With ``"fp16"`` the loss scaler leaves out what its scale makes
    overflow: that is no fault, unless the loss is not finite or the scale is down to 1.

    Whether a step may be taken has to be known before it is, so the host waits for the device once
    a batch. Several processes take the same decision at the same step, by exchanging one number a
    batch: what is not finite in one of them counts for all, and is told with the number of the
    process and its batch. ``EngineConfig(non_finite="skip")`` is short for this hook.

    Args:
        policy: ``"raise"``, ``"skip"`` or ``"stop"``.
        in_a_row: Optimizer steps of one problem that may be left out in a row under ``"skip"``,
            after which a :class:`NonFiniteError` is raised; ``None`` for any number.

    Attributes:
        skipped: Optimizer steps left out, by the problem's name.

    Raises:
        ConfigurationError: For another policy, or a number below 1.
    """

    optional = True
    reads_hypergradients = True
    reads_parameters = False

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
        """Begin a run that nothing has ended."""
        self._ending = None

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        """Whether loss and gradient are finite.

        Raises:
            NonFiniteError: Under ``"raise"``, when they are not.
        """
        if self._ending is not None:
            return False
        if result.error is not None and self.policy == "raise":
            return True
        fault = look_for_fault(problem, result, engine.processes)
        if fault is None:
            return True
        if self.policy == "raise":
            raise _error(problem, f"{fault.sentence} {_UNCHANGED}{fault.remedy}; {_SKIP}")
        self._last[problem.name] = fault.sentence
        if self.policy == "stop":
            self._ending = f"{fault.sentence} The run ends before that step."
        return False

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        """Count it, and say so.

        Raises:
            NonFiniteError: After too many in a row.
        """
        name = problem.name
        if self._ending is not None:
            return
        self.skipped[name] += 1
        self._streak[name] += 1
        reason = self._last.pop(name, None) or _nothing_below(problem)
        if self._streak[name] == self.in_a_row:
            raise _error(
                problem,
                f"The last {self.in_a_row} optimizer steps of problem {name!r} were left out; of "
                f"the latest: {reason} Start again from before, with a smaller learning rate or "
                "Config(gradient_clipping=...).",
            )
        number = self.skipped[name]
        # Every one at first, then ever more rarely.
        if number & (number - 1) == 0:
            engine.logger.warning(f"{reason} Optimizer step left out, {number} so far.")
        engine.logger.log({"skipped": number}, tag=f"non_finite/{name}", step=problem.count)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Note a step that was taken."""
        taken = problem.count % problem.config.gradient_accumulation == 0 and not result.skipped
        if taken:
            self._streak[problem.name] = 0

    def iteration_end(self, engine: Engine) -> None:
        """Save and end the run, if it is to end."""
        if self._ending is None:
            return
        # Saved before it is asked to stop, so that it can be resumed.
        engine.checkpointing.run_over(engine)
        engine.stop(self._ending)

    def state_dict(self) -> dict[str, Any]:
        """What has been counted."""
        return {"skipped": dict(self.skipped), "streak": dict(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.skipped = Counter(state["skipped"])
        self._streak = Counter(state["streak"])


def require_one_policy(hooks: Sequence[Hook]) -> None:
    """Refuse two hooks that decide about the same.

    Raises:
        ConfigurationError: Naming both.
    """
    found = [hook.policy for hook in hooks if isinstance(hook, NonFinite)]
    if len(found) > 1:
        raise ConfigurationError(
            f"The engine was given {len(found)} policies about values that are not finite: "
            f"{', '.join(map(repr, found))}. Give one, by EngineConfig(non_finite=...) or as a "
            "NonFinite hook."
        )


def _nothing_below(problem: Problem) -> str:
    spent = [p.name for p in problem.position.lowers if p.step_state.trajectory.all_skipped]
    return (
        f"Problem {problem.name!r} has nothing to differentiate through at step {problem.count}, "
        f"since {' and '.join(repr(name) for name in spent) or 'the problem below'} took no step."
    )


def _error(problem: Problem, message: str) -> NonFiniteError:
    error = NonFiniteError(message)
    error.problem, error.step = problem.name, problem.count
    return error
