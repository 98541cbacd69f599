"""Save checkpoints during a run, and resume from them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaweight.problems import CheckpointError, ConfigurationError
from metaweight.problems.base.ordinary_tensors import without_graph
from metaweight.problems.base.settings import shown
from metaweight.problems.data.loader_parts import is_stateful
from metaweight.problems.state.plain_data import from_plain

from ..hooks.base import Hook
from ..loggers import flatten_stats
from ..program.config import EngineConfig
from .file import Manifest, read_checkpoint, write_checkpoint
from .folder import CheckpointFolder
from .frozen_base import FrozenBase
from .shards import with_shards, write_shards
from .shards_folder import remove_shards
from .state import engine_from_plain, engine_to_plain, missing_devices, streams_to_dict

if TYPE_CHECKING:
    from ..engine import Engine

Path_ = str | os.PathLike[str]


def save_engine(
    engine: Engine, path: Path_, metric: str | None = None, value: float | None = None
) -> None:
    """Write the whole state of a program to a file; see :meth:`Engine.save`."""
    require_path("save", path)
    manifest = Manifest(engine.global_step, engine.run_state.run, metric, value)
    try:
        # Only process 0 writes logs; if it fails, the others must not wait for it.
        engine.processes.from_first(engine.logger.position)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} was not written, because the run's logs could not be written "
            f"to disk: {error.strerror or error}; free disk space."
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {path} was not written, because a logger could not tell its position: "
            f"{type(error).__name__}: {error}. Correct its position()."
        ) from error
    state, shards = engine_to_plain(engine)
    file, folder = Path(path), None
    if shards:
        state["shards"] = write_shards(engine.processes, file, shards)
        folder = state["shards"]["folder"]
    if engine.is_rank_zero():
        try:
            write_checkpoint(file, manifest, state)
        except CheckpointError:
            if folder is not None:
                shutil.rmtree(file.with_name(folder), ignore_errors=True)
            raise
        remove_shards(file, keep=folder)


@without_graph
def load_engine(engine: Engine, path: Path_) -> None:
    """Load the state in a file; see :meth:`Engine.load`."""
    require_path("load", path)
    load_state(engine, Path(path), read_state(engine, path))


def read_state(engine: Engine, path: Path_) -> Mapping[str, Any]:
    """Return the state in a file, read by process 0."""
    return engine.processes.from_first(lambda: read_checkpoint(Path(path))[1])


def load_state(engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
    """Load ``state``, which was read from ``path``."""
    engine.checkpoint_hook.frozen.note(engine)
    engine_from_plain(engine, with_shards(engine.processes, path, state), str(path))
    engine.run_state.resumed, engine.run_state.inside_step = True, False
    engine.checkpoint_hook.log = from_plain(state["log"])
    absent = missing_devices(state)
    if absent:
        engine.logger.warning(
            f"{path} was saved with {', '.join(absent)}, which is missing here: its random streams "
            "are not restored, so the run goes on, but not bit for bit."
        )


def require_path(asked: str, path: object) -> None:
    """Refuse anything but a path.

    Raises:
        ConfigurationError: Naming the called method.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        other = ", or resume='auto'" if asked == "run" else ""
        raise ConfigurationError(
            f"Engine.{asked} received {shown(path)}; give the path of a file{other}."
        )


class CheckpointHook(Hook):
    """Saves a checkpoint every ``checkpoint_step`` iterations, and after the best validations.

    Args:
        config: ``checkpoint_dir``, ``checkpoint_step``, ``keep_last``, ``keep_best``,
            ``checkpoint_metric``, ``checkpoint_mode``, ``checkpoint_failure`` and
            ``adapters_only`` are read.

    Attributes:
        folder: The checkpoint folder; ``None`` without ``checkpoint_dir``.
        log: Positions of the loggers in a loaded state, until the run resumes.
        frozen: What checkpoints leave out, if they hold adapters only.
    """

    only_shows = True

    def __init__(self, config: EngineConfig) -> None:
        self.folder: CheckpointFolder | None = None
        if config.checkpoint_dir is not None:
            self.folder = CheckpointFolder(
                Path(config.checkpoint_dir),
                config.keep_last,
                config.keep_best,
                config.checkpoint_metric,
                config.checkpoint_mode,
            )
        self.log: Mapping[str, Any] | None = None
        self.frozen = FrozenBase(config.adapters_only)
        self.step = config.checkpoint_step or config.valid_step
        self._policy = config.checkpoint_failure
        self._value: float | None = None

    def begin(self, engine: Engine, resume: Path_ | None) -> Mapping[str, Any] | None:
        """Load the checkpoint to resume from, and check that the run can be saved.

        Returns:
            The random streams to start with; ``None`` to keep the present ones.

        Raises:
            CheckpointError: When the checkpoint cannot be loaded, or the folder cannot be used.
            ConfigurationError: For ``resume="auto"`` without a folder, and for a state beyond
                ``train_iters``. The program is then unchanged.
        """
        self.frozen.note(engine)
        found = None if resume is None else self._found(engine, resume)
        run, step = engine.run_state.run, engine.global_step
        if found is not None:
            _require_ahead(engine, *found)
            run, step = found[1]["run"]["run"], found[1]["run"]["global_step"]
        if self.folder is not None:
            require_resumable(engine)
            folder = self.folder
            engine.processes.from_first(lambda: folder.prepare(run, step))
        if found is not None:
            load_state(engine, *found)
            engine.logger.info(f"Resumes from {found[0]}, step {engine.global_step}.")
        streams = streams_to_dict(engine) if engine.run_state.resumed else None
        engine.run_state.begin()
        if self.log is not None:
            engine.logger.resume_from(self.log)
            self.log = None
        self._value = None
        return streams

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        """Store the value that ranks checkpoints."""
        if self.folder is None or not self.folder.keep_best:
            return
        found = flatten_stats(stats)
        if self.folder.metric not in found:
            raise ConfigurationError(
                f"EngineConfig(keep_best={self.folder.keep_best}) ranks checkpoints by "
                f"{self.folder.metric!r}, but validation returned {sorted(found) or 'nothing'}; "
                "return it there, or choose another checkpoint_metric."
            )
        self._value = found[self.folder.metric]

    def save_if_due(self, engine: Engine) -> None:
        """Save if the iteration is due, or if the validation was among the best."""
        if self.folder is None:
            return
        value = self._value
        best = value is not None and self._is_among_best(engine, self.folder, value)
        if best or engine.run_state.iteration % self.step == 0:
            self._save(engine, self.folder)
        self._value = None

    def save_at_end(self, engine: Engine) -> None:
        """Save at the end of the run, unless this step has been saved."""
        if self.folder is None:
            return
        file = self.folder.file_of(engine.global_step)
        if not engine.processes.from_first(file.exists):
            self._save(engine, self.folder)

    def _is_among_best(self, engine: Engine, folder: CheckpointFolder, value: float) -> bool:
        return engine.processes.from_first(
            lambda: folder.is_among_best(engine.run_state.run, value)
        )

    def _save(self, engine: Engine, folder: CheckpointFolder) -> None:
        value = self._value
        given = None if value is None or not math.isfinite(value) else value
        metric = None if given is None else folder.metric
        try:
            save_engine(engine, folder.file_of(engine.global_step), metric, given)
            if engine.is_rank_zero():
                folder.prune(engine.run_state.run)
        # A user's object may raise anything.
        except Exception as error:
            if self._policy == "raise":
                raise
            known = isinstance(error, CheckpointError)
            text = str(error) if known else f"{type(error).__name__} while saving: {error}."
            engine.logger.warning(f"{text} The run goes on without it.")

    def _found(self, engine: Engine, resume: Path_) -> tuple[Path, Mapping[str, Any]] | None:
        """Return the file to resume from and its state; ``None`` if there is none."""
        require_path("run", resume)
        if resume != "auto":
            return Path(resume), read_state(engine, resume)
        if self.folder is None:
            raise ConfigurationError(
                "run(resume='auto') looks for checkpoints in EngineConfig(checkpoint_dir=...), "
                "which was not given; give it, or run(resume=path)."
            )
        folder = self.folder
        return engine.processes.from_first(lambda: folder.newest(engine.logger.warning))


def _require_ahead(engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
    """Refuse a state beyond the end of the run.

    Raises:
        ConfigurationError: Naming the file and both numbers.
    """
    done = _iterations(path, state)
    if done > engine.train_iters:
        raise ConfigurationError(
            f"{path} was saved at iteration {done}, beyond the end of the run, EngineConfig("
            f"train_iters={engine.train_iters}); raise train_iters or epochs, or use engine.load() "
            "if nothing is to be trained."
        )


def _iterations(path: Path, state: Mapping[str, Any]) -> int:
    try:
        return int(state["run"]["iteration"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not hold the iteration of its run; it was not written by metaweight."
        ) from error


def require_resumable(engine: Engine) -> None:
    """Refuse loaders whose position could not be restored, before training begins.

    Raises:
        ConfigurationError: For a loader with ``state_dict`` that two problems read.
    """
    seen: dict[int, str] = {}
    for problem in engine.problems:
        loaders = [] if problem.step_state.source is None else problem.source.loaders
        for index, loader in enumerate(loaders):
            if id(loader) in seen and is_stateful(loader):
                raise ConfigurationError(
                    f"Loader {index} of problem {problem.name!r} is the {type(loader).__name__} "
                    f"that {seen[id(loader)]} reads too. It has one position for both, so a run "
                    "with a checkpoint_dir could not be resumed; give each its own."
                )
            seen[id(loader)] = f"problem {problem.name!r}"
