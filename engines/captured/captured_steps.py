"""Iterations taken by a graph of tensor operations, once it is seen to do what Python does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, HypergradientError
from metaweight.problems.base import nested
from metaweight.problems.base.changes import changes
from metaweight.problems.step.scheduling import step_scheduler
from torch import Tensor

from ..program.instructions import Action
from ..program.taken import Taken
from .batches import values_of
from .by_python import ByPython
from .capturable import changing, moment_of, require_capturable, require_same_schedule
from .comparison import (
    EXACT,
    difference,
    end_elsewhere,
    largest_deviation,
    require_metrics_of_tensors,
)
from .drawing import draw, draw_watched
from .drawn import Drawn
from .feeding import Eager, Traced, fed
from .inputs import Inputs
from .operations import replay, traced
from .period import Period, next_period
from .program_tensors import (
    Kept,
    Labelled,
    looks_of,
    require_same_settings,
    require_same_tensors,
    settings_of,
    tensors_of,
)
from .rates import rates_of
from .recorded import Recorded
from .uncaptured import NEVER_ALIKE, SOON_ENDED, Uncaptured

if TYPE_CHECKING:
    from ..engine import Engine
    from ..execution import Execution

WARM = 2
"""Periods of the same form before one is captured: by then optimizers and methods have state."""


class CapturedSteps:
    """Takes iterations of a program by a graph of their tensor operations.

    The first periods, from one moment between loops to the next, are taken by Python. One is then
    traced: what it reads from loaders, and learning rates, become inputs, to be given later ones.
    The following one is taken both ways and compared. From then on Python draws batches, counts and
    steps schedulers, and the graph does the rest. Batches of another size are taken by Python.

    Args:
        engine: Whose iterations.
        execution: What takes them by Python.
        compiled: Whether the graph is compiled.
    """

    def __init__(self, engine: Engine, execution: Execution, *, compiled: bool) -> None:
        self._engine = engine
        self._execution = execution
        self._compiled = compiled
        self._problems = {problem.name: problem for problem in engine.problems}
        self._alike = 0
        self._patience = 2
        self._python = ByPython(engine, execution)
        self._uncaptured = Uncaptured(engine)
        self._form: Any = None
        self._recorded: Recorded | None = None

    def take(self, most: int) -> int:
        """Take the iterations of a period, if there are at most ``most``, and if it is not left to
        Python; return how many were taken.

        Raises:
            ConfigurationError: For a program that cannot be captured.
        """
        engine = self._engine
        self._python.begin()
        if self._python.pending is not None:
            return self._python.take(1, self._python.pending)
        leaves = [leaf.name for leaf in engine.leaves]
        period = next_period(engine.schedule, leaves, engine.config.capture_iterations)
        if period is None or len(period) > most:
            return self._leave_one(None if period is None else SOON_ENDED)
        recorded, form = self._recorded, period.form
        if recorded is not None and recorded.changes != changes():
            self._forget()
            recorded = None
        if changing(engine.hooks.iteration_ends):
            self.look_again(doubt=False)
            recorded = self._recorded
        if recorded is not None and form == recorded.form:
            self._form = None
            return self._take(period, recorded)
        self._alike, self._form = self._alike + 1 if form == self._form else 0, form
        if self._alike < WARM:
            return self._leave_one(NEVER_ALIKE)
        return self._capture(period)

    def _leave_one(self, why: str | None) -> int:
        if self._recorded is not None:
            return self._python.take_one()
        self._uncaptured.note(why)
        return 0

    def look_again(self, *, doubt: bool = True) -> None:
        """Forget what was captured if tensors, modes or settings of the program are others now.

        Args:
            doubt: Compare the next period, since what is no tensor may be another too.
        """
        recorded = self._recorded
        if recorded is None:
            return
        recorded.is_in_doubt |= doubt
        same = recorded.looks == looks_of(self._engine.problems)
        if not same or not recorded.inputs.are_as_captured():
            self._forget()

    @property
    def holds_batches(self) -> bool:
        """Whether batches are left that were drawn for steps that an error ended."""
        return self._python.pending is not None

    @property
    def done(self) -> int:
        """How many iterations a call took before an error ended it."""
        return self._python.done

    def drop_batches(self) -> None:
        """Drop these: the loaders are elsewhere now."""
        self._python.drop()

    def _forget(self) -> None:
        self._recorded, self._alike = None, 0

    def _capture(self, period: Period) -> int:
        """Take a period, and keep the operations that it consisted of."""
        engine = self._engine
        require_capturable(engine, period)
        drawn, copies = draw_watched(engine, self._execution, period, self._tensors())
        if drawn.error is not None:
            return self._python.take(len(period), Eager(drawn))
        updated = [self._problems[one.problem] for one in period.steps if one.last]
        places = Traced(copies, updated)
        start, settings = Kept.of(self._tensors()), [settings_of(p) for p in engine.problems]
        seen: list[Taken] = []
        try:
            with fed(engine.problems, places):
                graph = traced(lambda: self._run(period, places, seen))
            require_same_tensors(start.tensors, self._tensors())
            inputs = Inputs(graph, places.tensors)
            run = replay(graph, compiled=self._compiled)
        except BaseException:
            start.restore()
            raise
        self._recorded = Recorded(
            form=period.form,
            run=run,
            inputs=inputs,
            places=places,
            tensors=self._tensors() | {"what a step writes to": graph.written},
            settings=settings,
            looks=looks_of(engine.problems),
            changes=changes(),
            metrics=[taken.metrics for taken in seen],
        )
        self._uncaptured.forget()
        require_same_settings(engine.problems, settings)
        self._report(seen)
        return len(period)

    def _run(self, period: Period, places: Traced, seen: list[Taken]) -> list[Tensor]:
        """Take the iterations, and return losses and metrics."""
        with self._python.keeping_methods(), self._execution.collecting(seen):
            for _ in period.iterations:
                self._execution.take()
        require_metrics_of_tensors(seen)
        found = [t for taken in seen for t in (taken.loss, *nested.leaves(taken.metrics))]
        wrong = [condition.any() for condition in places.conditions]
        return [*found, *([torch.stack(wrong).any()] if wrong else [])]

    def _take(self, period: Period, recorded: Recorded) -> int:
        # What depends on a counter may be the same for long: looked at after 1, 2, 4, … periods.
        looked_at = recorded.is_in_doubt or not recorded.taken & (recorded.taken + 1)
        before = moment_of(self._engine)
        if looked_at:
            drawn, _ = draw_watched(self._engine, self._execution, period, recorded.tensors)
        else:
            drawn = draw(self._engine, self._execution, period)
        values = values_of(recorded.places.places, drawn)
        if self._has_changed(before) or values is None:
            self._python.take(len(period), Eager(drawn))
            if drawn.error is None and self._recorded is not None:
                self._note_left(recorded)
            return len(period)
        recorded.taken += 1
        if looked_at or recorded.is_in_doubt:
            self._verify(period, drawn, values, recorded)
        else:
            self._replay(period, values, recorded)
        return len(period)

    def _has_changed(self, before: Any) -> bool:
        """Return whether the end of an epoch, or a loader or hook, has changed the program."""
        now, recorded = moment_of(self._engine), self._recorded
        if before == now and not (recorded is not None and recorded.inputs.have_moved()):
            return False
        if before != now:
            require_same_schedule(before, now)
        self.look_again()
        return self._recorded is None

    def _note_left(self, recorded: Recorded) -> None:
        """Note a period whose batches were of another size."""
        recorded.left += 1
        if not recorded.taken and recorded.left >= self._patience:
            # What was captured was the exception, such as the last batch of an epoch.
            self._patience *= 2
            self._forget()
        elif recorded.is_mostly_left():
            self._engine.logger.warning(recorded.told_of_sizes())

    def _replay(self, period: Period, values: Sequence[Tensor], recorded: Recorded) -> None:
        engine, steps, rates = self._engine, [], []
        engine.schedule.exchange(period.after)
        for iteration in period.iterations:
            self._execution.count()
            for one in iteration:
                if one.action is not Action.STEP:
                    continue
                problem = self._problems[one.problem]
                problem.step_state.begin_step(one.count, engine.global_step)
                steps.append((one.problem, one.count, engine.global_step))
                if one.last:
                    rates.append(rates_of(problem))
                if problem.scheduler is not None and one.settled:
                    step_scheduler(problem)
        require_same_settings(engine.problems, recorded.settings)
        recorded.places.write(rates)
        found = iter(recorded.again(values))
        self._report(
            [
                Taken(
                    *step,
                    next(found),
                    metrics and nested.map_tensors(lambda _: next(found), metrics),
                )
                for step, metrics in zip(steps, recorded.metrics, strict=True)
            ]
        )
        if any(map(bool, found)):
            raise HypergradientError(
                f"A hypergradient diverged or is not finite in iteration {engine.global_step}, "
                "whose steps were captured and have been taken; run from a checkpoint without "
                "EngineConfig(capture=...) to be told which, and what to change."
            )

    def _verify(
        self, period: Period, drawn: Drawn, values: Sequence[Tensor], recorded: Recorded
    ) -> None:
        """Take a period by Python and by the graph, and compare; warn if they differ.

        Raises:
            ConfigurationError: If they differ at first, or in double precision; for batches that
                share memory with what steps write to.
        """
        engine = self._engine
        recorded.inputs.require_apart(values)
        start, seen = Kept.of(recorded.tensors), list[Taken]()
        feeding = Eager(drawn)
        with self._execution.collecting(seen):
            self._python.take(len(period), feeding)
        require_same_settings(engine.problems, recorded.settings)
        expected = Kept.of(recorded.tensors)
        start.restore()
        recorded.places.write(feeding.rates)
        found = recorded.again(values)
        most = largest_deviation(engine.problems, compiled=self._compiled)
        changed = recorded.is_in_doubt and recorded.is_verified
        usual = recorded.usual if changed else None
        differs, share = difference(recorded, values, start, expected, seen, found, most, usual)
        expected.restore()
        self._report(seen)
        if not (differs or changed):
            recorded.usual = max(recorded.usual, share)
        if differs and changed:
            self._forget()
        elif differs:
            since = len(period) * (recorded.taken - recorded.taken // 2)
            told = end_elsewhere(differs, engine.global_step - since)
            if not recorded.is_verified or most <= EXACT:
                raise ConfigurationError(told)
            engine.logger.warning(told)
        recorded.is_verified, recorded.is_in_doubt = True, False

    def _tensors(self) -> Labelled:
        return tensors_of(self._engine.problems)

    def _report(self, steps: Sequence[Taken]) -> None:
        for taken in steps:
            self._execution.tell(taken)


def captured_steps(engine: Engine, execution: Execution) -> CapturedSteps | None:
    """Return what takes an engine's iterations as its settings ask for, if they do."""
    how = engine.config.capture
    return None if how is None else CapturedSteps(engine, execution, compiled=how == "compile")
