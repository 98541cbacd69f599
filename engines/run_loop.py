"""The loop of a run: iterations, validations and checkpoints, each when it is due."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from metaweight.problems.base.ordinary_tensors import ordinary, with_ordinary_buffers

from .captured import CapturedSteps
from .checkpoint.state import set_streams
from .execution import Execution
from .first_words import name_defaults
from .loggers import flatten_stats, sentence
from .plateau import step_plateau
from .stopping import StopRequest, asked_to_end, stops_between_steps

if TYPE_CHECKING:
    from .engine import Engine


class RunLoop:
    """Takes the iterations of a run until it is over or asked to end.

    Args:
        engine: What is run.
        execution: What takes an iteration by Python.
        captured: What takes those that are captured, if any are to be.
    """

    def __init__(
        self, engine: Engine, execution: Execution, captured: CapturedSteps | None
    ) -> None:
        self._engine = engine
        self._execution = execution
        self._captured = captured

    def run(self, resume: str | os.PathLike[str] | None) -> None:
        """Run; see :meth:`~metaweight.Engine.run`."""
        engine = self._engine
        checkpoints = engine.checkpoint_hook
        streams = checkpoints.begin(engine, resume)
        if self._captured is not None:
            self._captured.look_again()
        engine.train()
        with stops_between_steps() as request:
            try:
                name_defaults(engine)
                engine.hooks.run_start(engine)
                if streams is not None:
                    set_streams(streams)
                while not (self._is_asked_to_end(request) or self._is_over()):
                    if not self._validation_is_due():
                        self._advance()
                    if self._validation_is_due() and not self._is_asked_to_end(request):
                        self._validate()
                    if checkpoints.folder is not None and not self._is_asked_to_end(request):
                        checkpoints.save_if_due(engine)
                checkpoints.save_at_end(engine)
                engine.logger.log_kept(["validation", *(p.name for p in engine.problems)])
            finally:
                engine.hooks.run_end(engine)
                engine.logger.close()

    def _is_over(self) -> bool:
        engine = self._engine
        state = engine.run_state
        if state.stopped is not None:
            engine.logger.info(state.stopped)
            return True
        return state.iteration >= engine.train_iters and not self._validation_is_due()

    def _is_asked_to_end(self, request: StopRequest) -> bool:
        return asked_to_end(request, self._engine.run_state, self._engine.processes)

    def _advance(self) -> None:
        """Take an iteration, or those of a period that is captured."""
        engine = self._engine
        taken = 0 if self._captured is None else self._take_captured(self._captured)
        if not taken:
            self._execution.take()
        for _ in range(taken or 1):
            engine.run_state.iteration += 1
            engine.hooks.iteration_end(engine)

    def _take_captured(self, captured: CapturedSteps) -> int:
        try:
            return captured.take(self._iterations_to_go())
        except BaseException:
            self._engine.run_state.iteration += captured.done
            raise

    def _iterations_to_go(self) -> int:
        """Return the iterations until a validation, a checkpoint or the end is due."""
        engine = self._engine
        done = engine.run_state.iteration
        every = [engine.valid_step, engine.checkpoint_hook.step]
        return min(engine.train_iters - done, *(n - done % n for n in every))

    def _validation_is_due(self) -> bool:
        """Return whether a validation is due and has not been run."""
        engine = self._engine
        iteration = engine.run_state.iteration
        due = iteration > 0 and iteration % engine.valid_step == 0
        return (
            due and engine.run_state.validated_at != engine.global_step and engine.do_validation()
        )

    def _validate(self) -> None:
        engine = self._engine
        engine.hooks.before_validation(engine)
        engine.eval()
        try:
            stats = engine.validation() or {}
        finally:
            engine.train()
            for problem in engine.problems:
                with_ordinary_buffers(problem.module)
        stats = {k: ordinary(v) for k, v in engine.processes.mean_stats(stats).items()}
        engine.logger.info(
            f"[Validation] [Global Step {engine.global_step}] {sentence(flatten_stats(stats))}"
        )
        engine.logger.log(stats, tag="validation", step=engine.global_step)
        for problem in engine.problems:
            step_plateau(problem, stats, "validation", engine.processes)
        if self._captured is not None:
            # A validation may load or replace what is trained.
            self._captured.look_again()
        engine.run_state.validated_at = engine.global_step
        engine.hooks.after_validation(engine, stats)
