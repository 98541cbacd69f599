"""Runs the problems of a graph in the order their schedule says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from metaweight.problems import (
    Auditor,
    GraphError,
    GraphPosition,
    HypergradientReport,
    Problem,
    Snapshot,
    StepResult,
    apply_initial_parameters,
    check_hypergradients,
    descend,
    expect_dependence,
    leave_out,
    owns_start,
    place_in_graph,
    prepare,
    prepare_recording,
    redo,
    redo_or_keep,
    require_own_parameters,
    reseed,
    step_scheduler,
    waits_for_metric,
)
from metaweight.problems.settings import shown

from .accelerated import require_unprepared, take_accelerators_precision
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
from .checkpoint import put_streams
from .checkpointing import Checkpointing, load_engine, save_engine
from .config import EngineConfig
from .counters import Counters
from .early_stopping import EarlyStopping
from .env import Env
from .graph import Graph
from .hooks import Hook, HookList
from .hypergradient_check import check_hypergradients_of
from .loggers import RunLogger, flatten_stats, make_run_logger
from .non_finite import NonFinite, require_one_policy
from .placement import choose_device
from .process_group import join_processes
from .progress import ProgressBar
from .same_program import require_same_program
from .schedule import Action, Instruction, Rhythm, Schedule
from .standing import Standing
from .stopping import StopRequest, asked_to_end, stops_between_steps
from .synchronised_batch_norm import synchronised

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
        self.standing = Standing()
        self.standing.run = self.processes.from_first(lambda: self.standing.run)
        self.checkpointing = Checkpointing(self.config)
        saving = [] if self.checkpointing.folder is None else [self.checkpointing]
        self.hooks = HookList([*_configured_hooks(self.config), *given_hooks, *saving])
        require_one_policy(self.hooks.hooks)
        self.leaves: list[Problem] = []
        self.dependencies = dependencies
        self.snapshots: dict[str, Snapshot] = {}
        self._counters: Counters | None = None
        self._by_name: dict[str, Problem] = {}
        require_free_names(self.problems, self, env)
        with unchanged_on_error(self.problems, env):
            self._by_name = {problem.name: problem for problem in self.problems}
            self._wire(graph)
            self._prepare()
            self._schedule = self._make_schedule(graph)
            self.train()
            self.processes.share_out(self.problems)
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
        streams = self.checkpointing.begin(self, resume)
        self.train()
        # A run that ended with an error may have left whole parameters.
        self.processes.share_out(self.problems)
        whole: AbstractContextManager[None] = nullcontext()
        with stops_between_steps() as request:
            try:
                with self.processes.whole_parameters():
                    self.hooks.run_start(self)
                if streams is not None:
                    put_streams(streams)
                while not (self._is_asked_to_end(request) or self._is_over()):
                    self._iterate(request)
                self.checkpointing.run_over(self)
                # After an error the other processes may wait for something else.
                whole = self.processes.whole_parameters()
            finally:
                with whole:
                    self.hooks.run_end(self)
                self.logger.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything the program is to a file, from which a program built alike goes on.

        Of several processes all call it, and the first one writes. With ``strategy="fsdp"`` all
        write, to a folder beside the file, whose name begins with the file's.

        That is every problem with its module, optimizer, scheduler and loss scaler, steps recorded
        for a hypergradient, gradients amid an accumulation, hooks, random streams, the places of
        loaders, and counters. Problems with state of their own add it to ``state_dict``.

        Raises:
            CheckpointError: When the file cannot be written, amid a step, or for state that is
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

    def whole_parameters(self) -> AbstractContextManager[None]:
        """Let every process hold all parameters inside.

        With ``strategy="fsdp"`` each has a part of them between steps, and this is where to
        evaluate, copy or save a module after a run; inside steps, validations and hooks they are
        whole in any case. All processes enter it, even if only one uses it. With other strategies
        nothing changes.
        """
        return self.processes.whole_parameters()

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
        self.standing.stopped = reason

    def train(self) -> None:
        """Put every problem into training mode."""
        for problem in self.problems:
            problem.train()

    def eval(self) -> None:
        """Put every problem into evaluation mode."""
        for problem in self.problems:
            problem.eval()

    def set_dependency(self, dependencies: Dependencies | None) -> None:
        """Rewire the graph; step counters go on, readiness of upper problems starts anew.

        Raises:
            GraphError: When the new dependencies are not valid; the old ones then stay.
        """
        graph = Graph.build(self.problems, dependencies)
        earlier = self._schedule
        self._wire(graph)
        with self.processes.whole_parameters():
            for problem in self.problems:
                check_hypergradients(problem)
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

    def audit(self, lower: Problem, auditor: Auditor | None) -> None:
        """Let ``auditor`` stand in for the hypergradient of a lower problem, or nobody."""
        lower.auditor = auditor
        prepare_recording(lower)
        self._schedule.record(lower.name, lower.trajectory.recording.updates)

    def hand_over_every(self, lower: Problem, loops: int) -> None:
        """From now on let a lower problem hand over to its upper ones after so many loops.

        A loop is ``unroll_steps`` optimizer steps; a hypergradient goes through the last one.
        Counting begins where the present loop began.

        Raises:
            ValueError: For a number below 1.
            GraphError: For a problem of another engine.
        """
        if not any(lower is problem for problem in self.problems):
            raise GraphError(
                f"hand_over_every({shown(lower)}) was asked for a problem that is not among those "
                f"of the engine ({', '.join(p.name for p in self.problems)}); give one of these."
            )
        self._schedule.hand_over_every(lower.name, loops)

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
        for problem in self.problems:
            peers = {name: p for name, p in self._by_name.items() if p is not problem}
            position = GraphPosition(
                parents=graph.parents[problem.name],
                children=graph.children[problem.name],
                paths=graph.paths[problem.name],
                peers=peers,
            )
            place_in_graph(problem, position)

    def _prepare(self) -> None:
        if self.env is not None:
            self.env._peers = self._by_name
            self.env.configure_device(self.device)
            self.env.initialize()
        for problem in self.problems:
            problem.logger = self.logger
            problem.env = self.env
            problem.keeps_parts = any(hook.reads_hypergradients for hook in self.hooks.hooks)
            # Those of an engine the problem was in before.
            problem.processes.give_back()
            problem.processes = self.processes
            take_accelerators_precision(problem, self.config)
            require_unprepared(problem, self.config)
            prepare(
                problem,
                self.device,
                self._epoch_end,
                self._drive,
                channels_last=self.config.channels_last,
            )
            require_unprepared(problem, self.config)
        require_same_program(self.processes, self.problems, self.config)
        for problem in self.problems:
            if self.config.sync_batch_norm:
                problem.module = synchronised(problem.module, self.processes.world)
            self._share(problem)
        require_own_parameters(self.problems)
        for problem in self.problems:
            check_hypergradients(problem)
        expect_dependence(self.problems)

    def _share(self, problem: Problem) -> None:
        """Give the problem's parameters and buffers the values they have in process 0."""
        self.processes.share([*problem.module.parameters(), *problem.module.buffers()])

    def _make_schedule(self, graph: Graph[Problem]) -> Schedule:
        rhythms = {
            problem.name: Rhythm(
                unroll_steps=problem.config.unroll_steps,
                accumulation=problem.config.gradient_accumulation,
                warmup=problem.config.warmup_steps,
                roll_back=self.config.roll_back,
                recorded_updates=problem.trajectory.recording.updates,
            )
            for problem in self.problems
        }
        parents = {name: [p.name for p in ups] for name, ups in graph.parents.items()}
        return Schedule(rhythms, parents)

    def _is_over(self) -> bool:
        if self.standing.stopped is not None:
            self.logger.info(self.standing.stopped)
            return True
        return self.standing.iteration >= self.train_iters and not self._owes_validation()

    def _owes_validation(self) -> bool:
        """Whether a validation is due that has not taken place."""
        iteration = self.standing.iteration
        due = iteration > 0 and iteration % self.valid_step == 0
        return due and self.standing.validated_at != self.global_step and self.do_validation()

    def _iterate(self, request: StopRequest) -> None:
        if not self._owes_validation():
            self._take_iteration()
            self.standing.iteration += 1
            with self._whole_for(self.hooks.reads_at_iteration_end):
                self.hooks.iteration_end(self)
        if self._owes_validation() and not self._is_asked_to_end(request):
            self._validate()
        if self.checkpointing.folder is not None and not self._is_asked_to_end(request):
            self.checkpointing.iteration_over(self)

    def _take_iteration(self) -> None:
        """Step; what errs before anything has been changed leaves the counters as they were."""
        self._counters = Counters(self.problems, self._schedule)
        self.global_step += 1
        try:
            self.train_step()
        except BaseException:
            if self._counters.put_back():
                self.global_step -= 1
                self.standing.amid_step = False
            raise
        finally:
            self._counters = None

    def _is_asked_to_end(self, request: StopRequest) -> bool:
        return asked_to_end(request, self.standing, self.processes)

    def _drive(self, problem: Problem, global_step: int | None) -> None:
        # What comes after an exception here cannot be saved: the schedule is ahead of the steps.
        self.standing.amid_step = True
        for instruction in self._schedule.advance(problem.name):
            self._execute(instruction, global_step)
        self.standing.amid_step = False

    def _execute(self, instruction: Instruction, global_step: int | None) -> None:
        problem = self._by_name[instruction.problem]
        action = instruction.action
        if self._counters is not None:
            self._counters.begins(problem, instruction)
        if action is Action.STEP:
            self._step(problem, instruction, global_step)
        elif action is Action.LOOP_START:
            self._begin_loop(problem)
        elif action is Action.SNAPSHOT:
            with self.processes.parts_of_parameters():
                self.snapshots[problem.name] = Snapshot(
                    problem.module, problem.optimizer, problem.scaler
                )
        elif action is Action.REDO:
            self._redo(problem)
            step_scheduler(problem)
        else:
            step_scheduler(problem)

    def _begin_loop(self, problem: Problem) -> None:
        problem.trajectory.begin_loop()
        redraws = type(problem).on_inner_loop_start is not Problem.on_inner_loop_start
        with self._whole_for(redraws or owns_start(problem)):
            problem.on_inner_loop_start()
            if redraws:
                # It may have drawn new parameters.
                self._share(problem)
            apply_initial_parameters(problem)

    def _whole_for(self, reads_parameters: bool) -> AbstractContextManager[None]:
        return self.processes.whole_parameters() if reads_parameters else nullcontext()

    def _step(self, problem: Problem, instruction: Instruction, global_step: int | None) -> None:
        with self.processes.whole_parameters():
            self._step_whole(problem, instruction, global_step)

    def _step_whole(
        self, problem: Problem, instruction: Instruction, global_step: int | None
    ) -> None:
        problem.begin_step(instruction.count, global_step)
        self.hooks.before_step(self, problem)
        result = self._descend(problem, instruction)
        if self._counters is not None:
            self._counters.stepped()
        if result.left_out:
            self.hooks.step_left_out(self, problem)
        if instruction.settled:
            step_scheduler(problem)
        self._log(problem, result, global_step)
        if problem.scheduler is not None and not (self.do_validation() or result.left_out):
            self._step_plateau(problem, {**result.metrics, "loss": result.loss}, "training_step")
        # The optimizer has left parts of the parameters.
        with self._whole_for(self.hooks.reads_after_step):
            self.hooks.after_step(self, problem, result)

    def _descend(self, problem: Problem, instruction: Instruction) -> StepResult:
        record, first, last = instruction.record, instruction.first, instruction.last
        if any(lower.trajectory.spent for lower in problem.position.lowers):
            return leave_out(problem, record=record, first=first, last=last)
        return descend(
            problem,
            record=record,
            first=first,
            last=last,
            after_gradient=self._after_gradient,
            accepts=self._accepts if self.hooks.may_refuse else None,
        )

    def _redo(self, problem: Problem) -> None:
        start, may_refuse, taken = self.snapshots[problem.name], self.hooks.may_refuse, True
        with self.processes.parts_of_parameters():
            if not may_refuse:
                start.restore(problem.optimizer, problem.scaler)
                redo(problem)
            # Where its last steps were left out, no upper problem has stepped: the loop stands.
            elif not problem.trajectory.spent:
                taken = redo_or_keep(problem, start, self._accepts)
        if not taken:
            self.hooks.step_left_out(self, problem)

    def _accepts(self, problem: Problem, result: StepResult) -> bool:
        return self.hooks.accepts(self, problem, result)

    def _after_gradient(self, problem: Problem) -> None:
        self.hooks.after_gradient(self, problem)
        if self._counters is not None:
            # What errs from here on may have changed parameters.
            self._counters.stepped()

    def _log(self, problem: Problem, result: StepResult, global_step: int | None) -> None:
        every = problem.config.log_step
        if every <= 0 or problem.count % every != 0:
            return
        stats = flatten_stats({**result.metrics, "loss": result.loss})
        local = global_step is None or problem.config.log_local_step
        place = "" if global_step is None else f" [Global Step {global_step}]"
        self.logger.info(
            f'[Problem "{problem.name}"]{place} [Local Step {problem.count}] {_sentence(stats)}'
        )
        self.logger.log(stats, tag=problem.name, step=problem.count if local else global_step)

    def _validate(self) -> None:
        with self.processes.whole_parameters():
            self._validate_whole()

    def _validate_whole(self) -> None:
        self.hooks.before_validation(self)
        self.eval()
        try:
            stats = self.validation() or {}
        finally:
            self.train()
        stats = self.processes.mean_stats(stats)
        self.logger.info(
            f"[Validation] [Global Step {self.global_step}] {_sentence(flatten_stats(stats))}"
        )
        self.logger.log(stats, tag="validation", step=self.global_step)
        for problem in self.problems:
            self._step_plateau(problem, stats, "validation")
        self.standing.validated_at = self.global_step
        self.hooks.after_validation(self, stats)

    def _step_plateau(self, problem: Problem, stats: Mapping[str, Any], source: str) -> None:
        if not waits_for_metric(problem.scheduler):
            return
        metric = problem.config.plateau_metric
        if metric not in stats:
            raise GraphError(
                f"The ReduceLROnPlateau scheduler of problem {problem.name!r} waits for "
                f"{metric!r}, but {source} returned {sorted(stats) or 'nothing'}; return it "
                "there, or name another value in Config(plateau_metric=...)."
            )
        problem.scheduler.step(self.processes.mean_stats({metric: stats[metric]})[metric])

    def _epoch_end(self, problem: Problem) -> None:
        with self.processes.whole_parameters():
            problem.epoch_callback()
            self.hooks.epoch_end(self, problem)


def _configured_hooks(config: EngineConfig) -> list[Hook]:
    hooks: list[Hook] = []
    if config.early_stopping:
        hooks.append(
            EarlyStopping(
                metric=config.early_stopping_metric,
                tolerance=config.early_stopping_tolerance,
                mode=config.early_stopping_mode,
            )
        )
    if config.non_finite != "ignore":
        hooks.append(NonFinite(config.non_finite))
    if config.progress:
        hooks.append(ProgressBar())
    return hooks


def _sentence(stats: Mapping[str, float]) -> str:
    return " || ".join(f"{name}: {value:.6g}" for name, value in stats.items())
