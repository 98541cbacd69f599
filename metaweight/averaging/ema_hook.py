"""A hook that averages the parameters of one problem while an engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, Problem, StepResult
from metaweight.problems.base.settings import require_flag
from metaweight.problems.references import require_problem

from .decay import Buffers, EMASettings, WarmUp
from .ema import EMA


class EMAHook(Hook):
    """Keeps an :class:`EMA` of one problem's module, with one update per optimizer step. ::

        hook = EMAHook("classifier", beta=0.999)
        Engine(problems, config, dependencies, hooks=[hook]).run()

    The average is updated at the end of the iteration of the optimizer step, so that an upper
    problem which differentiates through the step evaluates it with the same teacher. Micro-batches
    that do not complete an accumulation are not counted, nor are steps that a roll-back undoes or
    that the loss scaler refuses.

    In a program of several processes, all hold the same average. With ``buffers="own"`` the running
    statistics of the teachers' own passes are averaged over processes at every update.

    In ``validation()`` use ``with hook.applied():``, or let the hook do so. A ``training_step`` can
    use ``hook.teacher()``.

    Args:
        problem: The problem or its name.
        beta: See :class:`EMA`, also for ``warm_up`` and ``buffers``.
        warm_up: How the average starts.
        buffers: Source of the teacher's buffers.
        validate_teacher: Whether ``engine.validation()`` evaluates the teacher. The student is
            restored at ``after_validation``, for this hook and those after it in the list.

    Raises:
        ConfigurationError: For a setting that is unknown or out of range.
    """

    def __init__(
        self,
        problem: str | Problem,
        beta: float = 0.999,
        *,
        warm_up: WarmUp = "none",
        buffers: Buffers = "copy",
        validate_teacher: bool = False,
    ) -> None:
        require_problem("EMAHook", problem)
        require_flag("EMAHook", "validate_teacher", validate_teacher)
        self.problem = problem
        self.settings = EMASettings(beta, warm_up, buffers)
        self.validate_teacher = validate_teacher
        self._ema: EMA | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._due = False

    @property
    def ema(self) -> EMA:
        """The average.

        Raises:
            ConfigurationError: Before the first run, when there is none yet.
        """
        if self._ema is None:
            raise ConfigurationError(
                f"The EMAHook of problem {self._name!r} has no average yet; it begins with "
                "engine.run(). Give the hook to the engine and use it inside the run or after it."
            )
        return self._ema

    def applied(self) -> AbstractContextManager[nn.Module]:
        """Apply the teacher inside the ``with`` statement; see :meth:`EMA.applied`."""
        return self.ema.applied()

    def teacher(self) -> nn.Module:
        """Return a copy of the module that holds the average; see :meth:`EMA.teacher`."""
        return self.ema.teacher()

    def run_start(self, engine: Engine) -> None:
        """Start the average, unless an earlier run has.

        Raises:
            ConfigurationError: When the engine has no such problem.
        """
        found = [problem for problem in engine.problems if self._averages(problem)]
        if not found:
            raise ConfigurationError(
                f"EMAHook was given problem {self._name!r}, which is not among those of the "
                f"engine ({', '.join(problem.name for problem in engine.problems)})."
            )
        self._begin(found[0])

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Do an update that is still due before the parameters change again."""
        if self._averages(problem):
            self._begin(problem)
            self._update(engine, problem)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Note that an update is due."""
        taken = not (result.skipped or result.overflow)
        if self._averages(problem) and _lasts(engine, problem) and taken:
            self._due = True

    def iteration_end(self, engine: Engine) -> None:
        """Update the average, where the problem has taken an optimizer step."""
        if self._due:
            self._update(engine, next(p for p in engine.problems if self._averages(p)))

    def before_validation(self, engine: Engine) -> None:
        """Apply the teacher, if asked to."""
        if self.validate_teacher:
            self.ema.apply_teacher()

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        """Restore the student."""
        self._restore()

    def run_end(self, engine: Engine) -> None:
        """Restore the student where a validation has ended with an exception."""
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the average."""
        return {
            "ema": self._loaded if self._ema is None else self._ema.state_dict(),
            "due": self._due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, at once or when the run begins."""
        if self._ema is not None and state["ema"] is not None:
            self._ema.load_state_dict(state["ema"])
        else:
            if self._ema is not None:
                self._ema.require_student("load_state_dict")
            self._ema, self._loaded = None, state["ema"]
        self._due = bool(state["due"])

    @property
    def _name(self) -> str:
        return self.problem if isinstance(self.problem, str) else self.problem.name

    def _averages(self, problem: Problem) -> bool:
        return problem is self.problem or problem.name == self.problem

    def _begin(self, problem: Problem) -> None:
        if self._ema is not None:
            return
        given = self.settings
        ema = EMA(problem.module, given.beta, warm_up=given.warm_up, buffers=given.buffers)
        if self._loaded is not None:
            ema.load_state_dict(self._loaded)
        self._ema, self._loaded = ema, None

    def _update(self, engine: Engine, problem: Problem) -> None:
        if self._due:
            self.ema.model = problem.module
            self.ema.update()
            own = self.ema.own_statistics()
            for statistic, mean in zip(own, engine.processes.mean(own), strict=True):
                statistic.copy_(mean)
            self._due = False

    def _restore(self) -> None:
        if self.validate_teacher and self._ema is not None and self._ema.is_applied:
            self._ema.restore_student()


def _lasts(engine: Engine, problem: Problem) -> bool:
    """Return whether the step's change of the parameters lasts, or is redone after a roll-back."""
    config, count = problem.config, problem.count
    if count % config.gradient_accumulation != 0:
        return False
    if not engine.config.roll_back or not problem.parents:
        return True
    loop = config.unroll_steps * config.gradient_accumulation
    loop_end = -(-count // loop) * loop
    return count == loop_end or loop_end <= config.warmup_steps
