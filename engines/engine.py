"""Runs the problems of a graph in the order their schedule says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metaweight.problems import GraphError, Hypergradient, HypergradientReport, Problem
from metaweight.problems.base.settings import shown
from metaweight.problems.recording.step_state import StepState
from metaweight.problems.setup.preparation import check_hypergradients, prepare_recording
from metaweight.problems.state.buffers import Snapshot
from metaweight.problems.state.random_streams import reseed
from metaweight.problems.step.undetected_dependencies import expect_dependence

from .arguments import (
    checked_config,
    checked_hooks,
    checked_problems,
    require_env,
    require_free_names,
    require_runnable,
    require_validation,
    unchanged_on_error,
)
from .assembly import make_schedule, prepare_problems, wire
from .checkpoint.hook import CheckpointHook, load_engine, save_engine
from .checkpoint.state import set_streams
from .distributed.placement import choose_device
from .distributed.process_group import join_processes
from .execution import Execution
from .hooks.base import Hook, HookList
from .hooks.configured_hooks import configured_hooks
from .hooks.hypergradient_check import check_hypergradients_of
from .hooks.non_finite import require_one_policy
from .loggers import RunLogger, flatten_stats, make_run_logger, sentence
from .plateau import step_plateau
from .program.config import EngineConfig
from .program.env import Env
from .program.graph import Graph
from .program.run_state import RunState
from .program.schedule import Schedule
from .stopping import StopRequest, asked_to_end, stops_between_steps

Dependencies = Mapping[str, Mapping[Problem, Sequence[Problem]]]


class Engine:
    """A multilevel program: problems, who steps after whom, and the loop that runs them.

    Problems are its attributes by their names. Override :meth:`validation` to measure something
    every ``valid_step`` steps.

    Args:
        problems: All problems, each with its own name.
        config: Settings; the defaults of :class:`EngineConfig` when left out.
        dependencies: ``{"u2l": {upper: [lower, …]}, "l2u": {lower: [upper, …]}}``. ``u2l``: the
            upper problem's parameters enter the lower one's loss, so hypergradients flow to it.
            ``l2u``: the lower problem steps before the upper one.
        env: What the problems share.
        hooks: Further hooks, after those the configuration asks for.

    Raises:
        GraphError: When problems and dependencies do not form a valid program.
        ConfigurationError: When a setting does not fit.
        DataError: When a loader is known to be empty.

    After an error the problems are what they were before.
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
        graph = Graph.build(self.problems, dependencies)
        self.env = env
        self.train_iters = self.config.train_iters
        self.valid_step = self.config.valid_step
        self.global_step = 0
        self.device = choose_device(self.config)
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
        self.hooks = HookList([*configured_hooks(self.config), *given_hooks, *saving])
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
            self._wire(graph)
            prepare_problems(self, self._execution.drive, self._execution.end_epoch)
            self._schedule = self._make_schedule(graph)
            self.train()
        if not self.is_rank_zero():
            # Samples of other processes get other dropout, and process 0 draws as if it were alone.
            reseed(self.device, self.processes.seed + self.processes.rank)

    def __getattr__(self, name: str) -> Any:
        by_name = self.__dict__.get("_by_name", {})
        if name in by_name:
            return by_name[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.")

    def run(self, resume: str | os.PathLike[str] | None = None) -> None:
        """Step all leaf problems ``train_iters`` times, validating every ``valid_step``.

        Ctrl-C and SIGTERM let the step under way end, save it where there is a ``checkpoint_dir``,
        and then end the process as they would have; a second one ends it at once.

        Args:
            resume: Go on with a run that was saved, to the same end as if it had never been
                interrupted: ``"auto"`` with the latest checkpoint in ``checkpoint_dir``, or from
                the start where there is none; a path with that file. A run that :meth:`load` has
                put somewhere goes on from there by itself.

        Raises:
            ConfigurationError: Inside ``torch.no_grad``, or for a ``resume`` that is no path.
            CheckpointError: When there is a checkpoint that cannot be loaded, when
                ``checkpoint_dir`` holds another run, or when it fails and
                ``checkpoint_failure="raise"``.
        """
        require_runnable(self)
        streams = self.checkpoint_hook.begin(self, resume)
        self.train()
        with stops_between_steps() as request:
            try:
                self.hooks.run_start(self)
                if streams is not None:
                    set_streams(streams)
                while not (self._is_asked_to_end(request) or self._is_over()):
                    if not self._validation_is_due():
                        with self._execution:
                            self.train_step()
                        self.run_state.iteration += 1
                        self.hooks.iteration_end(self)
                    if self._validation_is_due() and not self._is_asked_to_end(request):
                        self._validate()
                    if self.checkpoint_hook.folder is not None and not self._is_asked_to_end(
                        request
                    ):
                        self.checkpoint_hook.save_if_due(self)
                self.checkpoint_hook.save_at_end(self)
            finally:
                self.hooks.run_end(self)
                self.logger.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything the program is to a file, from which a program built alike goes on.

        Of several processes all call it, and the first one writes.

        That is every problem with its module, optimizer, scheduler and loss scaler, steps recorded
        for a hypergradient, gradients accumulated so far, hooks, random streams, the places of
        loaders, and counters. Problems with state of their own add it to ``state_dict``.

        Raises:
            CheckpointError: When the file cannot be written, inside a step, or for state that is
                more than tensors, numbers, text and containers of these.
        """
        save_engine(self, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Put the program where the one that was saved stood; the next ``run()`` goes on there.

        Of several processes all call it, and the first one reads.

        Nothing in the file is executed. When the file does not fit, nothing is changed.

        Raises:
            CheckpointError: When the file cannot be read, is damaged, or is of another program.
        """
        load_engine(self, path)

    def train_step(self) -> None:
        """Step every leaf problem once, and the problems above as they become due."""
        for leaf in self.leaves:
            leaf.step(global_step=self.global_step)

    def validation(self) -> Mapping[str, Any] | None:
        """Measure the program; override it and return names and values to log.

        Of several processes each measures, on its own share of the data or on all, and numbers
        and tensors are averaged over them.
        """
        return None

    def stop(self, reason: str) -> None:
        """Ask a run to end after the present step."""
        self.run_state.stopped = reason

    def train(self) -> None:
        """Put every problem into training mode."""
        for problem in self.problems:
            problem.train()

    def eval(self) -> None:
        """Put every problem into evaluation mode."""
        for problem in self.problems:
            problem.eval()

    def set_dependency(self, dependencies: Dependencies | None) -> None:
        """Rewire the graph; step counters go on, and upper problems wait again.

        Raises:
            GraphError: When the new dependencies are not valid; the old ones then stay.
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
        """Compare every lower problem's hypergradient with exact ones, on its own next batches.

        Two references in double precision: the method itself with its approximations taken away,
        and the exact derivative through the last ``unroll_steps`` optimizer steps. The reports say
        how far apart they are, and in words what is to blame: half precision, a displacement that
        is too long, batch norm or dropout, a loss that cannot be replayed, something detached.
        Print them. The training steps this takes are ordinary ones and count as such.

        Args:
            tolerance: Largest relative error against the method itself that is let pass.

        Raises:
            GraphError: When no problem differentiates through another.
        """
        return check_hypergradients_of(self, tolerance)

    def audit(self, lower: Problem, auditor: Hypergradient | None) -> None:
        """Let ``auditor`` stand in for the hypergradient of a lower problem, or nobody."""
        if auditor is not None:
            self.processes.require_audit(lower)
        lower.step_state.audit_by(auditor)
        prepare_recording(lower)
        self._schedule.record(lower.name, lower.step_state.trajectory.recording.updates)

    def upper_update_every(self, lower: Problem, loops: int) -> None:
        """From now on let a lower problem hand over to its upper ones after so many loops.

        A loop is ``unroll_steps`` optimizer steps; a hypergradient goes through the last one.
        Counting begins where the present loop began.

        Raises:
            ValueError: For a number below 1.
            GraphError: For a problem of another engine.
        """
        if not any(lower is problem for problem in self.problems):
            raise GraphError(
                f"upper_update_every({shown(lower)}) was asked of a problem not among those "
                f"of the engine ({', '.join(p.name for p in self.problems)}); give one of these."
            )
        self._schedule.upper_update_every(lower.name, loops)

    def do_validation(self) -> bool:
        """Whether there is a validation to run."""
        return type(self).validation is not Engine.validation

    def is_rank_zero(self) -> bool:
        """Whether this process is the one that logs and writes files."""
        return self.processes.rank == 0

    @property
    def schedule(self) -> Schedule:
        """The order of execution."""
        return self._schedule

    def describe(self) -> str:
        """Return the graph as text: per problem its uppers, lowers and hypergradient paths."""
        lines = []
        for problem in self.problems:
            paths = [" -> ".join(p.name for p in path) for path in problem.paths]
            lines.append(
                f"{problem.name}: uppers {[p.name for p in problem.parents]}, "
                f"lowers {[p.name for p in problem.children]}, paths {paths}"
            )
        return "\n".join(lines)

    def _wire(self, graph: Graph[Problem]) -> None:
        self.leaves = list(graph.leaves)
        wire(self.problems, graph)

    def _make_schedule(self, graph: Graph[Problem]) -> Schedule:
        return make_schedule(self.problems, graph, roll_back=self.config.roll_back)

    def _is_over(self) -> bool:
        if self.run_state.stopped is not None:
            self.logger.info(self.run_state.stopped)
            return True
        return self.run_state.iteration >= self.train_iters and not self._validation_is_due()

    def _validation_is_due(self) -> bool:
        """Whether a validation is due that has not taken place."""
        iteration = self.run_state.iteration
        due = iteration > 0 and iteration % self.valid_step == 0
        return due and self.run_state.validated_at != self.global_step and self.do_validation()

    def _is_asked_to_end(self, request: StopRequest) -> bool:
        return asked_to_end(request, self.run_state, self.processes)

    def _validate(self) -> None:
        self.hooks.before_validation(self)
        self.eval()
        try:
            stats = self.validation() or {}
        finally:
            self.train()
        stats = self.processes.mean_stats(stats)
        self.logger.info(
            f"[Validation] [Global Step {self.global_step}] {sentence(flatten_stats(stats))}"
        )
        self.logger.log(stats, tag="validation", step=self.global_step)
        for problem in self.problems:
            step_plateau(problem, stats, "validation", self.processes)
        self.run_state.validated_at = self.global_step
        self.hooks.after_validation(self, stats)
