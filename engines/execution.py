"""Carries out what a schedule says: steps, loops, snapshots, roll-backs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from metaweight.problems import Problem, StepResult
from metaweight.problems.base.settings import LeftOut
from metaweight.problems.step.descent import descend, skip_step
from metaweight.problems.step.redo import redo, redo_or_keep
from metaweight.problems.step.scheduling import end_scheduled_epoch, step_scheduler
from metaweight.problems.step.snapshot import snapshot_of
from metaweight.problems.unrolling.initial import apply_initial_parameters, owns_start

from .assembly import share
from .loggers import flatten_stats, sentence
from .plateau import step_plateau
from .program.counters import Counters
from .program.instructions import Action, Instruction
from .program.taken import Taken

if TYPE_CHECKING:
    from .engine import Engine


LOGGED_BY_DEFAULT = 100
"""Steps of a problem between two losses that loggers get where ``log_step`` is left out."""


class Execution:
    """Carries out the instructions of an engine's schedule.

    As a context it is one iteration: an error inside, before anything has been changed, leaves the
    counters as they were.

    Args:
        engine: Whose problems step, whose hooks are told, and whose logger writes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._problems = {problem.name: problem for problem in engine.problems}
        self._counters: Counters | None = None
        self._seen: list[Taken] | None = None

    def take(self) -> None:
        """Take an iteration."""
        with self:
            self._engine.train_step()

    def count(self) -> None:
        """Count an iteration that is taken otherwise; the schedule stays."""
        self._engine.global_step += 1

    @contextmanager
    def looking_ahead(self) -> Iterator[None]:
        """Count iterations inside that are not taken yet, and forget them at the end."""
        before = self._engine.global_step
        try:
            yield
        finally:
            self._engine.global_step = before

    @contextmanager
    def collecting(self, seen: list[Taken]) -> Iterator[None]:
        """Keep the steps inside in a list, in place of logging them."""
        self._seen = seen
        try:
            yield
        finally:
            self._seen = None

    def tell(self, taken: Taken) -> None:
        """Log a step that was taken otherwise, if it is due, and tell hooks of it."""
        engine, problem = self._engine, self._problems[taken.problem]
        if self._is_logged(problem):
            self._log(problem, taken)
        for hook in engine.hooks.after_steps:
            hook.after_step(engine, problem, StepResult(taken.loss, taken.metrics))

    def __enter__(self) -> None:
        self._counters = Counters(self._engine.problems, self._engine.schedule)
        self._engine.global_step += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        counters, self._counters = self._counters, None
        if error is not None and counters is not None and counters.put_back():
            self._engine.global_step -= 1
            self._engine.run_state.inside_step = False

    def drive(self, problem: Problem, global_step: int | None) -> None:
        """Step a leaf problem once, and the problems above it as they become due."""
        # What comes after an exception here cannot be saved: the schedule is ahead of the steps.
        engine, counters = self._engine, self._counters
        engine.run_state.inside_step = True
        for instruction in engine.schedule.advance(problem.name):
            target, action = self._problems[instruction.problem], instruction.action
            if counters is not None:
                counters.begins(target, instruction)
            if action is Action.STEP:
                self._step(target, instruction, global_step)
            elif action is Action.LOOP_START:
                self._begin_loop(target, keep=instruction.record)
            elif action is Action.SNAPSHOT:
                self._take_snapshot(target)
            elif action is Action.REDO:
                self._redo(target)
                step_scheduler(target)
            else:
                step_scheduler(target)
        engine.run_state.inside_step = False

    def _step(self, problem: Problem, instruction: Instruction, global_step: int | None) -> None:
        engine, hooks = self._engine, self._engine.hooks
        problem.step_state.begin_step(instruction.count, global_step)
        for hook in hooks.before_steps:
            hook.before_step(engine, problem)
        result = self._descend(problem, instruction)
        if self._counters is not None:
            self._counters.stepped()
        if result.skipped:
            hooks.step_skipped(engine, problem)
        if problem.scheduler is not None and instruction.settled:
            step_scheduler(problem)
        if self._seen is not None or self._is_logged(problem):
            taken = Taken(problem.name, problem.count, global_step, result.loss, result.metrics)
            if self._seen is None:
                self._log(problem, taken)
            else:
                self._seen.append(taken)
        if problem.scheduler is not None and not (engine.do_validation() or result.skipped):
            measured = {**result.metrics, "loss": result.loss}
            step_plateau(problem, measured, "training_step", engine.processes)
        if self._seen is None:
            for hook in hooks.after_steps:
                hook.after_step(engine, problem, result)

    def _descend(self, problem: Problem, instruction: Instruction) -> StepResult:
        record, first, last = instruction.record, instruction.first, instruction.last
        if problem.position.paths and _has_nothing_below(problem):
            return skip_step(problem, record=record, first=first, last=last)
        accepts = self._accepts if self._engine.hooks.accepting else None
        return descend(problem, record, first, last, self._after_gradient, accepts)

    def _begin_loop(self, problem: Problem, *, keep: bool) -> None:
        problem.step_state.trajectory.begin_loop(keep=keep)
        problem.on_inner_loop_start()
        if type(problem).on_inner_loop_start is not Problem.on_inner_loop_start:
            # It may have drawn new parameters.
            share(self._engine.processes, problem)
        if owns_start(problem):
            apply_initial_parameters(problem)

    def _take_snapshot(self, problem: Problem) -> None:
        self._engine.snapshots[problem.name] = snapshot_of(problem)

    def _redo(self, problem: Problem) -> None:
        start, taken = self._engine.snapshots[problem.name], True
        if not self._engine.hooks.may_refuse:
            start.restore(problem.optimizer, problem.scaler)
            redo(problem)
        # Where its last steps were skipped, no upper problem has stepped: the loop stays.
        elif not problem.step_state.trajectory.all_skipped:
            taken = redo_or_keep(problem, start, self._accepts)
        if not taken:
            self._engine.hooks.step_skipped(self._engine, problem)

    def _accepts(self, problem: Problem, result: StepResult) -> bool:
        return self._engine.hooks.accepts(self._engine, problem, result)

    def _after_gradient(self, problem: Problem) -> None:
        for hook in self._engine.hooks.after_gradients:
            hook.after_gradient(self._engine, problem)
        if self._counters is not None:
            # What errs from here on may have changed parameters.
            self._counters.stepped()

    def _is_logged(self, problem: Problem) -> bool:
        loggers = self._engine.logger.loggers
        return bool(loggers) or not isinstance(problem.config.log_step, LeftOut)

    def _log(self, problem: Problem, taken: Taken) -> None:
        every, logger, global_step = problem.config.log_step, self._engine.logger, taken.global_step
        left_out = isinstance(every, LeftOut)
        if left_out:
            every = LOGGED_BY_DEFAULT
        due = every > 0 and taken.count % every == 0
        if not (due or left_out):
            return
        local = global_step is None or problem.config.log_local_step
        step = taken.count if local else global_step
        numbers = {**taken.metrics, "loss": taken.loss}
        if not due:
            logger.keep(numbers, tag=problem.name, step=step)
            return
        stats = flatten_stats(numbers)
        place = "" if global_step is None else f" [Global Step {global_step}]"
        if not left_out:
            logger.info(
                f'[Problem "{problem.name}"]{place} [Local Step {taken.count}] {sentence(stats)}'
            )
        logger.log(stats, tag=problem.name, step=step)

    def end_epoch(self, problem: Problem) -> None:
        """Tell that the first loader of a problem has ended."""
        problem.epoch_callback()
        if problem.scheduler is not None:
            end_scheduled_epoch(problem)
        for hook in self._engine.hooks.epoch_ends:
            hook.epoch_end(self._engine, problem)


def _has_nothing_below(problem: Problem) -> bool:
    """Return whether a problem below has no step to differentiate through."""
    # Asked in every step; a generator takes several times as long.
    return any([lower.step_state.trajectory.all_skipped for lower in problem.position.lowers])
