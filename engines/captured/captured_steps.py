"""Iterations taken by a graph of tensor operations, once it is seen to do what Python does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from metaweight.problems import ConfigurationError, HypergradientError
from metaweight.problems.base.changes import changes
from metaweight.problems.base.nested import leaves, map_tensors
from metaweight.problems.step.descent import next_batch
from metaweight.problems.step.scheduling import step_scheduler
from torch import Tensor

from ..program.instructions import Action
from ..program.taken import Taken
from .batches import Place, require_batches_that_stay, watching_parameters
from .capturable import changing, require_capturable
from .comparison import (
    EXACT,
    end_elsewhere,
    largest_deviation,
    require_metrics_of_tensors,
    same_metrics,
)
from .feeding import Eager, Traced, fed, write_rates
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
from .recorded import Recorded, WrittenBack
from .updates import rates_of

if TYPE_CHECKING:
    from ..engine import Engine
    from ..execution import Execution

WARM = 2
"""Periods of the same form before one is captured: by then optimizers and methods have state."""


class CapturedSteps:
    """Takes iterations of a program by a graph of their tensor operations.

    The first periods, from one moment between loops to the next, are taken by Python. One is then
    traced: what it reads from loaders, and learning rates, become places to write later ones to.
    The following one is taken both ways and compared. From then on Python draws batches, counts and
    steps schedulers, and the graph does the rest. Batches of another size are taken by Python.

    Args:
        engine: Whose iterations.
        execution: What takes them by Python.
        compiled: Whether the graph is compiled by ``torch.compile``.
    """

    def __init__(self, engine: Engine, execution: Execution, *, compiled: bool) -> None:
        self._engine = engine
        self._execution = execution
        self._compiled = compiled
        self._problems = {problem.name: problem for problem in engine.problems}
        self._alike = 0
        self._form: Any = None
        self._recorded: Recorded | None = None

    def take(self, most: int) -> int:
        """Take the iterations of a period, if there are at most ``most``, and if it is not left to
        Python; return how many were taken.

        Raises:
            ConfigurationError: For a program that cannot be captured.
        """
        engine = self._engine
        period = next_period(engine.schedule, [leaf.name for leaf in engine.leaves])
        if period is None or len(period) > most:
            return 0
        recorded, form = self._recorded, period.form
        if recorded is not None and recorded.changes != changes():
            self._forget()
            recorded = None
        if changing(engine.hooks.iteration_ends):
            self.look_again()
            recorded = self._recorded
        if recorded is not None and form == recorded.form:
            self._form = None
            self._take(period, recorded)
            return len(period)
        self._alike, self._form = self._alike + 1 if form == self._form else 0, form
        if self._alike < WARM:
            return 0
        self._capture(period)
        return len(period)

    def look_again(self) -> None:
        """Forget what was captured if tensors, modes or settings of the program are others now."""
        recorded = self._recorded
        if recorded is not None and recorded.looks != looks_of(self._engine.problems):
            self._forget()

    def _forget(self) -> None:
        self._recorded, self._alike = None, 0

    def _capture(self, period: Period) -> None:
        """Take a period, and keep the operations that it consisted of."""
        engine = self._engine
        require_capturable(engine, period)
        copies: list[Place] = []
        with watching_parameters(engine.problems):
            batches = self._draw(period, copies.append)
        require_batches_that_stay(copies, batches)
        places = Traced(
            copies,
            [
                [torch.tensor(rate, dtype=torch.float64) for rate in rates_of(self._problems[name])]
                for name in (one.problem for one in period.steps if one.last)
            ],
        )
        start, settings = Kept.of(self._tensors()), [settings_of(p) for p in engine.problems]
        seen: list[Taken] = []
        with fed(engine.problems, places):
            try:
                graph = traced(lambda: self._run(period, places, seen))
                require_same_tensors(start.tensors, self._tensors())
            except BaseException:
                start.restore()
                raise
        self._recorded = Recorded(
            form=period.form,
            run=replay(graph.module, compiled=self._compiled),
            places=places,
            tensors=self._tensors() | {"what a step writes to": places.without(graph.written)},
            settings=settings,
            looks=looks_of(engine.problems),
            changes=changes(),
            metrics=[taken.metrics for taken in seen],
        )
        require_same_settings(engine.problems, settings)
        self._report(seen)

    def _run(self, period: Period, places: Traced, seen: list[Taken]) -> list[Tensor]:
        """Take the iterations, and return losses and metrics."""
        with self._keeping_methods(), self._execution.collecting(seen):
            for _ in period.iterations:
                self._execution.take()
        require_metrics_of_tensors(seen)
        found = [t for taken in seen for t in (taken.loss, *leaves(taken.metrics))]
        wrong = [condition.any() for condition in places.conditions]
        return [*found, *([torch.stack(wrong).any()] if wrong else [])]

    def _take(self, period: Period, recorded: Recorded) -> None:
        batches = self._draw(period)
        pairs = list(zip(recorded.places.places, batches, strict=True))
        if not all(place.fits(batch) for place, batch in pairs):
            self._eagerly(period, batches)
            return
        recorded.taken += 1
        # What depends on a counter may be the same for long: looked at after 1, 2, 4, … periods.
        if recorded.taken & (recorded.taken - 1):
            self._replay(period, batches, recorded)
        else:
            self._verify(period, batches, recorded)

    def _replay(self, period: Period, batches: Sequence[Any], recorded: Recorded) -> None:
        engine, rates = self._engine, iter(recorded.places.rates)
        steps = []
        for place, batch in zip(recorded.places.places, batches, strict=True):
            place.write(batch)
        for iteration in period.iterations:
            self._execution.count()
            for one in iteration:
                if one.action is not Action.STEP:
                    continue
                problem = self._problems[one.problem]
                problem.step_state.begin_step(one.count, engine.global_step)
                steps.append((one.problem, one.count, engine.global_step))
                if one.last:
                    write_rates(next(rates), rates_of(problem))
                if problem.scheduler is not None and one.settled:
                    step_scheduler(problem)
        require_same_settings(engine.problems, recorded.settings)
        found = iter(recorded.run())
        self._report(
            [
                Taken(*step, next(found), map_tensors(lambda _: next(found), metrics))
                for step, metrics in zip(steps, recorded.metrics, strict=True)
            ]
        )
        if any(map(bool, found)):
            raise HypergradientError(
                f"A hypergradient diverged or is not finite in iteration {engine.global_step}, "
                "whose steps were captured and have been taken; run from a checkpoint without "
                "EngineConfig(capture=...) to be told which, and what to change."
            )

    def _verify(self, period: Period, batches: Sequence[Any], recorded: Recorded) -> None:
        """Take a period by Python and by the graph, and compare; warn if they differ.

        Raises:
            ConfigurationError: If they differ at first, or in double precision.
        """
        engine = self._engine
        start, seen = Kept.of(recorded.tensors), list[Taken]()
        with self._execution.collecting(seen):
            rates = self._eagerly(period, batches)
        require_same_settings(engine.problems, recorded.settings)
        expected = Kept.of(recorded.tensors)
        start.restore()
        for place, batch in zip(recorded.places.places, batches, strict=True):
            place.write(batch)
        for places, present in zip(recorded.places.rates, rates, strict=True):
            write_rates(places, present)
        found = recorded.run()
        where, share = Kept.of(recorded.tensors).deviation(expected, start)
        expected.restore()
        self._report(seen)
        most = largest_deviation(engine.problems, compiled=self._compiled)
        if share > most or not same_metrics(seen, recorded.metrics, found, most):
            differs = f"{where} differs by {share:.2g} of the way"
            since = len(period) * (recorded.taken - recorded.taken // 2)
            told = end_elsewhere(
                differs if share > most else "losses or metrics differ", engine.global_step - since
            )
            # In float32 what is amplified may be rounding, once there is little way to go.
            if not recorded.is_verified or most <= EXACT:
                raise ConfigurationError(told)
            engine.logger.warning(told)
        recorded.is_verified = True

    def _eagerly(self, period: Period, batches: Sequence[Any]) -> list[list[float]]:
        """Take the iterations by Python, on these batches; return the learning rates."""
        feeding = Eager(batches)
        with fed(self._engine.problems, feeding), self._keeping_methods():
            for _ in period.iterations:
                self._execution.take()
        return feeding.rates

    def _draw(self, period: Period, keep: Callable[[Place], object] | None = None) -> list[Any]:
        """Draw the batches of a period, each with the counters of its step, and keep copies."""
        engine = self._engine
        counts = [(p.step_state, p.count, p.step_state.global_step) for p in engine.problems]
        before, found = engine.global_step, []
        try:
            for iteration in period.iterations:
                engine.global_step += 1
                for one in (each for each in iteration if each.action is Action.STEP):
                    problem = self._problems[one.problem]
                    problem.step_state.begin_step(one.count, engine.global_step)
                    found.append(next_batch(problem))
                    if keep is not None:
                        keep(Place(found[-1]))
        finally:
            engine.global_step = before
            for state, count, global_step in counts:
                state.begin_step(count, global_step)
        return found

    def _keeping_methods(self) -> Any:
        """Return a context at whose end new states of methods are written to the old tensors."""
        return WrittenBack([p.step_state.method_states for p in self._engine.problems])

    def _tensors(self) -> Labelled:
        return tensors_of(self._engine.problems)

    def _report(self, steps: Sequence[Taken]) -> None:
        for taken in steps:
            self._execution.tell(taken)


def captured_steps(engine: Engine, execution: Execution) -> CapturedSteps | None:
    """Return what takes an engine's iterations as its settings ask for, if they do."""
    how = engine.config.capture
    return None if how is None else CapturedSteps(engine, execution, compiled=how == "compile")
