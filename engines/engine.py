"""The engine: runs the problems of a graph in the order of a schedule."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from metaweight.problems import GraphError, Hypergradient, HypergradientReport, Problem
from metaweight.problems.base.settings import shown
from metaweight.problems.recording.step_state import StepState
from metaweight.problems.setup.preparation import check_hypergradients, prepare_recording
from metaweight.problems.state.buffers import Snapshot
from metaweight.problems.state.random_streams import reseed
from metaweight.problems.step.absent_hypergradients import expect_dependence

from .arguments import (
    Dependencies,
    checked_config,
    checked_hooks,
    checked_problems,
    config_or_settings,
    require_env,
    require_free_names,
    require_runnable,
    require_validation,
    two_levels,
    unchanged_on_error,
)
from .assembly import make_schedule, prepare_problems, wire
from .captured import captured_steps
from .checkpoint.hook import CheckpointHook, load_engine, save_engine
from .description import describe
from .distributed.placement import choose_device
from .distributed.process_group import join_processes
from .execution import Execution
from .freed_memory import keep_freed_memory
from .hooks.base import Hook, HookList
from .hooks.configured_hooks import configured_hooks
from .hooks.hypergradient_check import check_hypergradients_of
from .hooks.non_finite import require_one_policy
from .loggers import RunLogger, make_run_logger
from .program.config import EngineConfig
from .program.env import Env
from .program.graph import Graph
from .program.run_state import RunState
from .program.schedule import Schedule
from .run_length import steps_of_run
from .run_loop import RunLoop

AnyEngine = TypeVar("AnyEngine", bound="Engine")


class Engine:
    """A multilevel program: problems, their dependencies, and the training loop.

    Problems are attributes of the engine, by their names. Override :meth:`validation` to measure
    something every ``valid_step`` iterations.

    Args:
        problems: All problems, each with its own name.
        config: Settings; by default those of :class:`EngineConfig`.
        dependencies: ``{"u2l": {upper: [lower, …]}, "l2u": {lower: [upper, …]}}``. ``u2l``: the
            upper problem's parameters enter the lower loss, so hypergradients flow to it.
            ``l2u``: the lower problem steps before the upper one.
        env: State that the problems share.
        hooks: Further hooks, called after those of the configuration.

    Raises:
        GraphError: When problems and dependencies do not form a valid program.
        ConfigurationError: When a setting does not fit.
        DataError: When a loader is known to be empty.

    After an error the problems are unchanged.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        config: EngineConfig | None = None,
        dependencies: Dependencies | None = None,
        env: Env | None = None,
        hooks: Iterable[Hook] = (),
    ) -> None:
        self.config = checked_config(config)
        self.problems = checked_problems(problems)
        given_hooks = checked_hooks(hooks)
        require_env(env)
        require_validation(self)
        noted = {problem: problem.noted_parents for problem in self.problems}
        graph = Graph.build(self.problems, dependencies, noted)
        self.env = env
        self.train_iters = int(self.config.train_iters)
        self.valid_step = self.config.valid_step
        self.global_step = 0
        self.device = choose_device(self.config)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.processes = join_processes(self.config, self.device)
        self.logger = (
            make_run_logger(self.config.logger_types, self.config.log_dir)
            if self.is_rank_zero()
            else RunLogger(quiet=True)
        )
        self.run_state = RunState()
        self.run_state.run = self.processes.from_first(lambda: self.run_state.run)
        self.checkpoint_hook = CheckpointHook(self.config)
        saving = [] if self.checkpoint_hook.folder is None else [self.checkpoint_hook]
        self.hooks = HookList([*configured_hooks(self.config, given_hooks), *given_hooks, *saving])
        require_one_policy(self.hooks.hooks)
        self.leaves: list[Problem] = []
        self.dependencies = dependencies
        self.snapshots: dict[str, Snapshot] = {}
        self.step_states: dict[str, StepState] = {}
        self._by_name: dict[str, Problem] = {}
        require_free_names(self.problems, self, env)
        with unchanged_on_error(self.problems, env):
            self._by_name = {problem.name: problem for problem in self.problems}
            self._execution = Execution(self)
            self._captured = captured_steps(self, self._execution)
            self._loop = RunLoop(self, self._execution, self._captured)
            self._wire(graph)
            prepare_problems(self, self._execution.drive, self._execution.end_epoch)
            self.train_iters = steps_of_run(self.config, self.leaves, self.processes)
            self._schedule = self._make_schedule(graph)
            self.train()
        if not self.is_rank_zero():
            # Each process draws different dropout; process 0 draws as a single process would.
            reseed(self.device, self.processes.seed + self.processes.rank)

    @classmethod
    def bilevel(
        cls: type[AnyEngine],
        upper: Problem,
        lower: Problem | Sequence[Problem],
        *,
        config: EngineConfig | None = None,
        env: Env | None = None,
        hooks: Iterable[Hook] = (),
        **settings: Any,
    ) -> AnyEngine:
        """Return an engine of one problem over another, or over several.

        The upper problem's parameters enter the loss of each lower one, which steps before it: the
        edges ``{"u2l": {upper: [lower, …]}, "l2u": {lower: [upper], …}}``.

        Args:
            upper: The upper problem.
            lower: The lower problem, or a list of several.
            config: Settings, in place of ``settings``.
            env: State that the problems share.
            hooks: Further hooks.
            **settings: Settings by their names in :class:`EngineConfig`, such as
                ``train_iters=1000``.

        Raises:
            ConfigurationError: For both ``config`` and ``settings``, and for settings that do not
                fit.
            GraphError: For what is no problem.
        """
        chosen = config_or_settings(config, settings)
        problems, dependencies = two_levels(upper, lower)
        return cls(problems, chosen, dependencies, env=env, hooks=hooks)

    def __getattr__(self, name: str) -> Any:
        by_name = self.__dict__.get("_by_name", {})
        if name in by_name:
            return by_name[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.")

    def run(self, resume: str | os.PathLike[str] | None = None) -> None:
        """Step all leaf problems ``train_iters`` times; validate every ``valid_step`` iterations.

        After Ctrl-C or SIGTERM the present step is finished and saved, if there is a
        ``checkpoint_dir``; then the signal ends the process. A second signal ends it at once.

        Args:
            resume: The checkpoint to resume from, with the same result as an uninterrupted run.
                ``"auto"``: the last one in ``checkpoint_dir``, or a new run if there is none. A
                path: that file. After :meth:`load` the run resumes from the loaded state without
                it.

        Raises:
            ConfigurationError: Inside ``torch.no_grad``, or for a ``resume`` that is no path.
            CheckpointError: When a checkpoint cannot be loaded, when ``checkpoint_dir`` holds
                another run, or when saving fails with ``checkpoint_failure="raise"``.
        """
        require_runnable(self)
        self._loop.run(resume)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state of the program to a file; a program built alike can resume from it.

        With several processes all must call it; process 0 writes.

        The state is that of modules, optimizers, schedulers, loss scalers, recorded steps,
        accumulated gradients, hooks, random streams, loaders and counters. Problems can add their
        own in ``state_dict``.

        Raises:
            CheckpointError: When the file cannot be written, inside a step, or for state other
                than tensors, numbers, text and containers of these.
        """
        save_engine(self, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load the state of a saved program; the next ``run()`` resumes from it.

        With several processes all must call it; process 0 reads. Nothing in the file is executed.
        If the file does not fit, the program is unchanged.

        Raises:
            CheckpointError: When the file cannot be read, is damaged, or is of another program.
        """
        load_engine(self, path)
        if self._captured is not None:
            self._captured.drop_batches()

    def train_step(self) -> None:
        """Step every leaf problem once, and the upper problems that become due."""
        for leaf in self.leaves:
            leaf.step(global_step=self.global_step)

    @property
    def has_own_train_step(self) -> bool:
        """Whether a class derived from this one steps otherwise."""
        return type(self).train_step is not Engine.train_step

    @property
    def holds_batches(self) -> bool:
        """Whether batches are left that were drawn for captured steps, of which one has failed."""
        return self._captured is not None and self._captured.holds_batches

    def validation(self) -> Mapping[str, Any] | None:
        """Measure the program; override it and return values to log by name.

        With several processes, each measures on its own share of the data or on all, and numbers
        and tensors are averaged over processes.
        """
        return None

    def stop(self, reason: str) -> None:
        """End the run after the present step, or those of the graph that is being taken."""
        self.run_state.stopped = reason

    def train(self) -> None:
        """Put every problem into training mode; see :meth:`Problem.train`."""
        for problem in self.problems:
            problem.train()

    def eval(self) -> None:
        """Put every problem into evaluation mode, until :meth:`train`."""
        # Problems may share modules, so all modes are read before any is changed.
        for problem in self.problems:
            problem.step_state.modes.note(problem.module)
        for problem in self.problems:
            problem.eval()

    def set_dependency(self, dependencies: Dependencies | None) -> None:
        """Replace the dependencies; step counters are kept, and upper problems wait again.

        Raises:
            GraphError: When the new dependencies are not valid; the old ones are kept.
        """
        graph = Graph.build(self.problems, dependencies)
        earlier = self._schedule
        self._wire(graph)
        for problem in self.problems:
            check_hypergradients(problem)
        self.processes.shard(self.problems)
        expect_dependence(self.problems)
        self._schedule = self._make_schedule(graph)
        self._schedule.carry_over(earlier)
        self.dependencies = dependencies

    def check_hypergradient(self, tolerance: float = 1e-2) -> list[HypergradientReport]:
        """Compare every lower problem's hypergradient with references, on its next batches.

        The references, in double precision, are the method itself without its approximations, and
        the exact derivative through the last ``unroll_steps`` optimizer steps. The reports give
        the errors and, in words, their causes: half precision, a displacement that is too long,
        batch norm or dropout, a loss that cannot be replayed, something detached. Print them. The
        check takes ordinary training steps.

        Args:
            tolerance: Largest accepted relative error against the method itself.

        Raises:
            GraphError: When no problem differentiates through another.
        """
        return check_hypergradients_of(self, tolerance)

    def audit(self, lower: Problem, auditor: Hypergradient | None) -> None:
        """Replace a lower problem's hypergradient by ``auditor``; ``None`` ends the check."""
        if auditor is not None:
            self.processes.require_audit(lower)
        lower.step_state.audit_by(auditor)
        prepare_recording(lower)
        self._schedule.record(lower.name, lower.step_state.trajectory.recording.updates)

    def upper_update_every(self, lower: Problem, loops: int) -> None:
        """Let upper problems step after every ``loops`` loops of a lower problem, from now on.

        A loop has ``unroll_steps`` optimizer steps; a hypergradient goes through the last loop.
        Counting begins at the start of the present loop.

        Raises:
            ValueError: For a number below 1.
            GraphError: For a problem of another engine.
        """
        if not any(lower is problem for problem in self.problems):
            raise GraphError(
                f"upper_update_every({shown(lower)}) received something other than a problem of "
                f"the engine ({', '.join(p.name for p in self.problems)}); give one of these."
            )
        self._schedule.upper_update_every(lower.name, loops)

    def do_validation(self) -> bool:
        """Return whether :meth:`validation` is overridden."""
        return type(self).validation is not Engine.validation

    def is_rank_zero(self) -> bool:
        """Return whether this process is the one that logs and writes files."""
        return self.processes.rank == 0

    @property
    def schedule(self) -> Schedule:
        """The order of execution."""
        return self._schedule

    def describe(self) -> str:
        """Return the program as text: the graph and its hypergradient paths; of each problem the
        size, device, memory, method, and the passes that a step takes, in which precision.

        Memory is that of this process between two steps, without activations, batches, and what
        torch's allocator holds beside. The state of an optimizer that has not stepped yet is
        estimated, for torch's own by a step on tensors without values.
        """
        return describe(self)

    def _wire(self, graph: Graph[Problem]) -> None:
        self.leaves = list(graph.leaves)
        wire(self.problems, graph)

    def _make_schedule(self, graph: Graph[Problem]) -> Schedule:
        return make_schedule(self.problems, graph, roll_back=self.config.roll_back)
