"""The base class of hooks: callbacks at the events of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import Problem, StepResult

if TYPE_CHECKING:
    from ..engine import Engine


class Hook:
    """Callbacks at the events of a run; override those you need.

    State that accumulates over steps belongs here rather than in a ``training_step``, which a
    hypergradient may evaluate several times. In a program of several processes, each has its own
    hooks, which must change the program in the same way in all. Data that a hook collects from
    samples differ between processes, and those of the first are saved, unless the hook combines
    them by ``engine.processes``.

    Attributes:
        only_shows: Whether the hook only displays or records the run. Such a hook is not saved with
            the program, which can be resumed without it.
        optional: Whether a program that was saved with the hook can be resumed without it, and the
            other way round.
        reads_hypergradients: Whether ``problem.step_state.hypergradient_terms`` is filled when a
            gradient is in ``.grad``: for each lower problem its hypergradient term, a list of
            tensors, one per parameter.
        changes_gradients: Whether ``after_gradient`` may change ``.grad``, unless ``only_shows``.
            An unrolled hypergradient cannot see that, and a warning says so. A hook that changes
            those of some problems overrides :meth:`changes_gradients_of`.
    """

    only_shows: bool = False
    optional: bool = False
    reads_hypergradients: bool = False
    changes_gradients: bool = True

    def changes_gradients_of(self, problem: Problem) -> bool:
        """Return whether ``after_gradient`` may change the gradient of a problem."""
        del problem
        return self.changes_gradients and not self.only_shows

    def run_start(self, engine: Engine) -> None:
        """Called before the first step of ``engine.run()``."""

    def run_end(self, engine: Engine) -> None:
        """Called after the last step, also when the run ends with an exception."""

    def before_step(self, engine: Engine, problem: Problem) -> None:
        """Called before a problem draws its batch."""

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        """Return whether a batch, whose gradient is in ``.grad``, may enter an optimizer step.

        Called before ``after_gradient``, and when a roll-back takes a step again. The optimizer
        step of a refused batch is skipped: parameters, buffers and optimizer are unchanged, no
        hypergradient goes through it, and an upper problem without any other step to differentiate
        through skips its own step too. ``result.error`` says why a hypergradient could not be
        formed; it is raised unless the batch is refused. In a program of several processes, all
        must give the same answer.
        """
        del engine, problem, result
        return True

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        """Called when an optimizer step of a problem has been skipped."""

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        """Called when a problem's gradient, with hypergradients, is in ``.grad``, before clipping.

        In a program of several processes it is averaged over all once an accumulation is complete,
        and this process's own until then.
        """

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        """Called after a problem's step. Reading ``result`` as numbers waits for the device."""

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        """Called when a problem's first loader has ended."""

    def iteration_end(self, engine: Engine) -> None:
        """Called after all leaf problems have stepped once."""

    def before_validation(self, engine: Engine) -> None:
        """Called before ``engine.validation()``. If that raises, ``after_validation`` is not
        called, and ``run_end`` is next."""

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        """Called after ``engine.validation()``, with the values it returned."""

    def state_loaded(self, engine: Engine) -> None:
        """Called after all problems and hooks have loaded a checkpoint, and before the positions of
        loaders are restored: a hook that replaces a loader has to do it here."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to be saved with the engine: tensors, numbers, text, and tuples, lists
        and dictionaries of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        del state


class HookList(Hook):
    """Several hooks as one; an event costs nothing when no hook overrides it."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self.hooks: Sequence[Hook] = tuple(hooks)
        self.starts = [h for h in self.hooks if type(h).run_start is not Hook.run_start]
        self.ends = [h for h in self.hooks if type(h).run_end is not Hook.run_end]
        self.before_steps = [h for h in self.hooks if type(h).before_step is not Hook.before_step]
        self.accepting = [h for h in self.hooks if type(h).accepts is not Hook.accepts]
        self.skips = [h for h in self.hooks if type(h).step_skipped is not Hook.step_skipped]
        self.after_gradients = [
            h for h in self.hooks if type(h).after_gradient is not Hook.after_gradient
        ]
        self.after_steps = [h for h in self.hooks if type(h).after_step is not Hook.after_step]
        self.epoch_ends = [h for h in self.hooks if type(h).epoch_end is not Hook.epoch_end]
        self.iteration_ends = [
            h for h in self.hooks if type(h).iteration_end is not Hook.iteration_end
        ]
        self.before_validations = [
            h for h in self.hooks if type(h).before_validation is not Hook.before_validation
        ]
        self.after_validations = [
            h for h in self.hooks if type(h).after_validation is not Hook.after_validation
        ]

    def state_loaded(self, engine: Engine) -> None:
        for hook in self.hooks:
            hook.state_loaded(engine)

    def run_start(self, engine: Engine) -> None:
        for hook in self.starts:
            hook.run_start(engine)

    def run_end(self, engine: Engine) -> None:
        for hook in self.ends:
            hook.run_end(engine)

    def before_step(self, engine: Engine, problem: Problem) -> None:
        for hook in self.before_steps:
            hook.before_step(engine, problem)

    def changing(self, problem: Problem) -> list[str]:
        """Return the names of what may change the gradient of a problem."""
        found = [h for h in self.after_gradients if h.changes_gradients_of(problem)]
        return [f"{type(hook).__name__}.after_gradient" for hook in found]

    @property
    def may_refuse(self) -> bool:
        """Whether some hook may make a step be skipped."""
        return bool(self.accepting)

    def accepts(self, engine: Engine, problem: Problem, result: StepResult) -> bool:
        return all([hook.accepts(engine, problem, result) for hook in self.accepting])

    def step_skipped(self, engine: Engine, problem: Problem) -> None:
        for hook in self.skips:
            hook.step_skipped(engine, problem)

    def after_gradient(self, engine: Engine, problem: Problem) -> None:
        for hook in self.after_gradients:
            hook.after_gradient(engine, problem)

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        for hook in self.after_steps:
            hook.after_step(engine, problem, result)

    def epoch_end(self, engine: Engine, problem: Problem) -> None:
        for hook in self.epoch_ends:
            hook.epoch_end(engine, problem)

    def iteration_end(self, engine: Engine) -> None:
        for hook in self.iteration_ends:
            hook.iteration_end(engine)

    def before_validation(self, engine: Engine) -> None:
        for hook in self.before_validations:
            hook.before_validation(engine)

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        for hook in self.after_validations:
            hook.after_validation(engine, stats)
