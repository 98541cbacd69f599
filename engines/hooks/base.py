"""Moments of a run that others can join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem, StepResult

if TYPE_CHECKING:
    from ..engine import Engine


class Hook:
    """Joins a run at named moments; override those that matter.

    State that accumulates over steps belongs here rather than in a ``training_step``, which a
    hypergradient may evaluate several times. Of several processes each has its own hooks; what they
    do to the program must be the same in all. What they gather from samples is each one's own, and
    saved from the first, unless they put it together by ``engine.processes``.

    Attributes:
        only_shows: Whether the hook only shows or writes down what goes on. Such a hook is not
            saved with the program, which can be resumed without it.
        optional: Whether a program that was saved with the hook can be resumed without it, and the
            other way round.
        reads_hypergradients: Whether ``problem.step_state.hypergradient_terms`` is to hold, when
            a gradient is in ``.grad``, its term through each lower problem: a list of tensors, one
            a parameter.
        reads_parameters: Whether ``after_step`` or ``iteration_end`` read or change parameters.
            Where processes have parts of these between steps, they are gathered for a hook that
            does; in all other moments but ``step_skipped`` they are whole for every hook.
    """

    only_shows: bool = False
    optional: bool = False
    reads_hypergradients: bool = False
    reads_parameters: bool = True

    def run_start(self, engine: Engine) -> None:
        """Before the first step of ``engine.run()``."""

    def run_end(self, engine: Engine) -> None:
        """After the last step, also when the run ends with an exception."""

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Before a problem draws its batch."""

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        """Whether a batch, whose gradient is in ``.grad``, may have its part in an optimizer step.

        Asked before ``after_gradient``, and when a roll-back takes a step again. The optimizer step
        of a batch that is refused is left out: parameters, buffers and optimizer stay as they were,
        no hypergradient goes through it, and an upper problem that finds nothing else to
        differentiate through leaves its own out too. ``result.error`` says why a hypergradient
        could not be formed; it is raised unless the batch is refused. Of several processes all
        must give the same answer.
        """
        del engine, problem, result
        return True

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        """When an optimizer step of a problem has been left out."""

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        """When a problem's gradient, hypergradients included, is in ``.grad``, before clipping.

        Of several processes it is averaged over all once an accumulation is complete, and this
        one's own until then.
        """

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """After a problem's step. Reading ``result`` as numbers waits for the device."""

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        """When a problem's first loader has ended."""

    def iteration_end(self, engine: Engine) -> None:
        """After all leaf problems have stepped once."""

    def before_validation(self, engine: Engine) -> None:
        """Before ``engine.validation()``, which may raise: ``after_validation`` then stays out, and
        ``run_end`` comes next."""

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        """After ``engine.validation()``, with what it returned."""

    def state_loaded(self, engine: Engine) -> None:
        """After all problems and hooks have loaded a checkpoint, and before loaders are put where
        they stood: the moment to put a loader of one's own in place."""

    def state_dict(self) -> dict[str, Any]:
        """State to be saved with the engine: tensors, numbers, text, and tuples, lists and
        dictionaries of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        del state


class HookList(Hook):
    """Several hooks as one; a moment costs nothing where no hook joins it."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self.hooks: Sequence[Hook] = tuple(hooks)
        self._starts = [h for h in self.hooks if type(h).run_start is not Hook.run_start]
        self._ends = [h for h in self.hooks if type(h).run_end is not Hook.run_end]
        self._before = [h for h in self.hooks if type(h).before_step is not Hook.before_step]
        self._accepts = [h for h in self.hooks if type(h).accepts is not Hook.accepts]
        self._left_out = [h for h in self.hooks if type(h).step_skipped is not Hook.step_skipped]
        self._gradients = [
            h for h in self.hooks if type(h).after_gradient is not Hook.after_gradient
        ]
        self._after = [h for h in self.hooks if type(h).after_step is not Hook.after_step]
        self._epochs = [h for h in self.hooks if type(h).epoch_end is not Hook.epoch_end]
        self._iterations = [
            h for h in self.hooks if type(h).iteration_end is not Hook.iteration_end
        ]
        self._before_validations = [
            h for h in self.hooks if type(h).before_validation is not Hook.before_validation
        ]
        self._validations = [
            h for h in self.hooks if type(h).after_validation is not Hook.after_validation
        ]

    def state_loaded(self, engine: Engine) -> None:
        for hook in self.hooks:
            hook.state_loaded(engine)

    def run_start(self, engine: Engine) -> None:
        for hook in self._starts:
            hook.run_start(engine)

    def run_end(self, engine: Engine) -> None:
        for hook in self._ends:
            hook.run_end(engine)

    def before_step(self, engine: Engine, problem: Problem) -> None:
        for hook in self._before:
            hook.before_step(engine, problem)

    @property
    def reads_after_step(self) -> bool:
        """Whether some hook looks at parameters after a step."""
        return any(hook.reads_parameters for hook in self._after)

    @property
    def reads_at_iteration_end(self) -> bool:
        """Whether some hook looks at parameters when an iteration ends."""
        return any(hook.reads_parameters for hook in self._iterations)

    @property
    def may_refuse(self) -> bool:
        """Whether some hook may leave a step out."""
        return bool(self._accepts)

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        return all([hook.accepts(engine, problem, result) for hook in self._accepts])

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        for hook in self._left_out:
            hook.step_skipped(engine, problem)

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        for hook in self._gradients:
            hook.after_gradient(engine, problem)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        for hook in self._after:
            hook.after_step(engine, problem, result)

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        for hook in self._epochs:
            hook.epoch_end(engine, problem)

    def iteration_end(self, engine: Engine) -> None:
        for hook in self._iterations:
            hook.iteration_end(engine)

    def before_validation(self, engine: Engine) -> None:
        for hook in self._before_validations:
            hook.before_validation(engine)

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        for hook in self._validations:
            hook.after_validation(engine, stats)
