"""Settings of an engine, checked when they are made and frozen afterwards."""

from __future__ import annotations

import os
from dataclasses import InitVar, dataclass

import torch
from metaweight.problems.base.errors import ConfigurationError
from metaweight.problems.base.settings import (
    LeftOut,
    require_choice,
    require_count,
    require_flag,
    require_text,
    shown,
)
from metaweight.problems.config import PRECISIONS

from ..loggers import MAKERS, Logger

STRATEGIES = ("default", "cpu", "gpu", "distributed", "zero", "fsdp", "accelerate")
NON_FINITE = ("ignore", "raise", "skip", "stop")
LOGGER_TYPES = ("none", *MAKERS)
OWNER = "EngineConfig"
CHOICES = {
    "strategy": STRATEGIES,
    "non_finite": NON_FINITE,
    "early_stopping_mode": ("min", "max"),
    "checkpoint_mode": ("min", "max"),
    "checkpoint_failure": ("warn", "raise"),
}
COUNTS = {
    "train_iters": 0,
    "valid_step": 1,
    "early_stopping_tolerance": 1,
    "keep_best": 0,
    "capture_iterations": 1,
}
FLAGS = ("roll_back", "early_stopping", "channels_last", "sync_batch_norm", "adapters_only")


@dataclass(frozen=True)
class EngineConfig:
    """Settings of a run.

    Args:
        train_iters: Steps of the leaf problems, those that wait for no other; 50000 when left out.
        epochs: Passes over the (first) loader of a leaf problem, in place of ``train_iters``. A
            step takes one batch. The engine counts them as steps when it is built, as
            ``engine.train_iters``.
        valid_step: Steps between two validations.
        logger_type: ``"none"`` (console only), ``"tensorboard"``, ``"wandb"``, ``"mlflow"``,
            ``"csv"``, ``"jsonl"``, an object of a class derived from :class:`Logger`, or a tuple of
            several.
        log_dir: Folder for file loggers; a folder per run is made in it at the first record.
        roll_back: After an upper problem has stepped, undo the lower problem's steps since its
            inner loop started and take the last one again with the new upper parameters. What
            another problem trains within the lower problem's network stays as it is.
        backend: Backend of ``torch.distributed`` for tensors on GPUs. With ``"gloo"`` the processes
            compute on the CPU, where the backend is gloo in any case. An Accelerator chooses its
            own.
        strategy: Device or devices of the problems: ``"default"`` (a GPU if there is one),
            ``"cpu"``, ``"gpu"``; or several processes, started by ``torchrun``, each on a GPU of
            its own or on the CPU: ``"distributed"`` keeps a whole copy in each process and shards
            the batches, ``"zero"`` shards the state of optimizers too. ``"fsdp"`` shards
            parameters, gradients and optimizer state of the problems at the bottom by torch's
            ``fully_shard`` (see :meth:`Problem.shard_modules`), for the methods that take first
            derivatives only: native reweighting, ``"darts"``, ``"sama"``, ``"penalty"`` and
            ``"zero_order"``. ``"accelerate"`` does the same as ``"distributed"``, with the device,
            the processes and, without ``precision``, the mixed precision of the script's
            ``Accelerator``, or of a new one; started by ``accelerate launch``, by ``torchrun``, or
            as one process.
        device: A device such as ``"cuda:1"``, in place of ``strategy``.
        early_stopping: Stop when the metric has not improved.
        early_stopping_mode: ``"min"`` or ``"max"``: which way is better.
        early_stopping_tolerance: Validations without improvement before stopping.
        early_stopping_metric: Name of the metric among the values that ``validation`` returns.
        channels_last: Use torch's ``channels_last`` memory format for convolution weights and
            batches of images, which is mostly faster. Values are the same to rounding.
        sync_batch_norm: In several processes, let batch norm use the statistics of the batches of
            all processes instead of each process's own.
        progress: Show steps, speed, losses, learning rates and the time left, in one process. By
            default as a bar where standard error is a terminal, and as a line of the log every 30
            seconds where it is none (:class:`ProgressLine`). ``True``: always as a bar. ``False``:
            not at all.
        checkpoint_dir: Folder for checkpoints, which hold the whole state of the run and are
            resumed by ``run(resume="auto")``. They are saved every ``checkpoint_step`` iterations,
            at the end, and when Ctrl-C or SIGTERM ends the run. ``None``: no checkpoints.
        checkpoint_step: Iterations between two checkpoints; ``valid_step`` when left out.
        keep_last: How many of the latest checkpoints to keep; ``None`` for all.
        keep_best: How many of the best to keep beside those. After a validation among the best, a
            checkpoint is saved at once.
        checkpoint_metric: Name of the value, among those that ``validation`` returns, by which the
            best are chosen.
        checkpoint_mode: ``"min"`` or ``"max"``: which way is better.
        adapters_only: Leave out of checkpoints the buffers and the parameters that require no
            gradient, as long as they are as the program was built with them: those of LoRA adapters
            are then small. The program that resumes has to be built on the same pretrained
            parameters; their fingerprints are in the checkpoint, and others are refused. Saving
            reads all of them once.
        checkpoint_failure: Policy for a checkpoint that cannot be written: ``"warn"`` and continue,
            or ``"raise"``. Earlier checkpoints are not changed.
        non_finite: Policy for a loss, gradient or hypergradient that is not finite: ``"ignore"``;
            ``"raise"`` an error that names problem, step and batch; ``"skip"`` the optimizer step;
            ``"stop"`` the run and save it. Each but the first waits for the device once a step. See
            :class:`NonFinite`, the hook for finer settings.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` for every problem whose
            ``Config(precision=...)`` is left out; one of its own stays. ``None``: ``"fp32"``. Upper
            problems pass through lower ones in their own precision, so that the same for all is
            mostly fastest. See :func:`fastest_precision`.
        capture: Take steps without Python, once some were taken with it, for programs whose steps
            are small: ``"replay"`` runs the operations of all levels, hypergradients included,
            one after the other; ``"compile"`` compiles them by torch's Inductor, which takes some
            seconds to minutes at first. A period is taken both ways and compared. What a graph of
            operations would leave out is refused: hooks and callbacks of single steps, random
            numbers such as dropout's, numbers read from tensors, several processes. ``None``: all
            steps by Python.
        capture_iterations: Iterations that one graph takes, at least; up to the next moment between
            inner loops. More save calls, and take longer to compile. What is left over before a
            validation, a checkpoint or the end is taken by Python.
        distributed: Older spelling of ``strategy="distributed"``.

    Raises:
        ConfigurationError: For an unknown name, a value out of range, or contradicting values.
    """

    train_iters: int = LeftOut(50000)
    epochs: int | None = None
    valid_step: int = 500
    logger_type: str | Logger | tuple[str | Logger, ...] = "none"
    log_dir: str | os.PathLike[str] = "metaweight_logs"
    roll_back: bool = False
    backend: str = "nccl"
    strategy: str = "default"
    device: str | torch.device | None = None
    early_stopping: bool = False
    early_stopping_mode: str = "min"
    early_stopping_tolerance: int = 5
    early_stopping_metric: str = "loss"
    channels_last: bool = False
    sync_batch_norm: bool = False
    progress: bool | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_step: int | None = None
    keep_last: int | None = 3
    keep_best: int = 0
    checkpoint_metric: str = "loss"
    checkpoint_mode: str = "min"
    checkpoint_failure: str = "warn"
    adapters_only: bool = False
    non_finite: str = "ignore"
    precision: str | None = None
    capture: str | None = None
    capture_iterations: int = 1
    distributed: InitVar[bool | None] = None

    def __post_init__(self, distributed: bool | None) -> None:
        self._merge_distributed(distributed)
        for field, choices in CHOICES.items():
            require_choice(OWNER, field, getattr(self, field), choices)
        if self.precision is not None:
            require_choice(OWNER, "precision", self.precision, PRECISIONS)
        self._check_capture()
        self._check_loggers()
        for field, least in COUNTS.items():
            require_count(OWNER, field, getattr(self, field), least)
        for field in FLAGS:
            require_flag(OWNER, field, getattr(self, field))
        self._check_epochs()
        if self.progress is not None:
            require_flag(OWNER, "progress", self.progress)
        for field in ("backend", "early_stopping_metric", "checkpoint_metric"):
            require_text(OWNER, field, getattr(self, field))
        _require_path("log_dir", self.log_dir)
        self._check_checkpoints()
        if not isinstance(self.device, (str, torch.device, type(None))):
            raise ConfigurationError(
                f"EngineConfig(device={self.device!r}) must be the name of a device, such as "
                "'cuda:1'."
            )
        if self.device is not None and self.strategy != "default":
            raise ConfigurationError(
                f"EngineConfig(device={self.device!r}, strategy={self.strategy!r}) places the "
                "problems twice; keep one of the two."
            )

    def _merge_distributed(self, distributed: bool | None) -> None:
        if distributed is not None:
            require_flag(OWNER, "distributed", distributed)
        if not distributed:
            return
        if self.strategy not in ("default", "distributed"):
            raise ConfigurationError(
                f"EngineConfig(distributed=True, strategy={self.strategy!r}) asks for two "
                "strategies; keep only strategy=."
            )
        object.__setattr__(self, "strategy", "distributed")

    def _check_capture(self) -> None:
        if self.capture is not None:
            require_choice(OWNER, "capture", self.capture, ("replay", "compile"))
        elif self.capture_iterations != 1:
            raise ConfigurationError(
                f"EngineConfig(capture_iterations={self.capture_iterations!r}) is of steps that "
                "are captured; give capture='compile' or 'replay' too, or leave it out."
            )

    def _check_epochs(self) -> None:
        if self.epochs is None:
            return
        require_count(OWNER, "epochs", self.epochs, least=0)
        if not isinstance(self.train_iters, LeftOut):
            raise ConfigurationError(
                f"EngineConfig(train_iters={self.train_iters}, epochs={self.epochs}) says twice "
                "how long to train; keep one of the two."
            )

    def _check_loggers(self) -> None:
        for index, given in enumerate(self.logger_types):
            if isinstance(given, str):
                require_choice(OWNER, "logger_type", given, LOGGER_TYPES)
            elif not isinstance(given, Logger):
                raise ConfigurationError(
                    f"EngineConfig(logger_type={shown(given)}) is no logger; give one of "
                    f"{', '.join(LOGGER_TYPES)}, or an object of a class derived from Logger."
                )
            if any(given is other or given == other for other in self.logger_types[:index]):
                raise ConfigurationError(
                    f"EngineConfig(logger_type=...) has {shown(given)} twice; list it once."
                )

    def _check_checkpoints(self) -> None:
        for field in ("checkpoint_step", "keep_last"):
            if getattr(self, field) is not None:
                require_count(OWNER, field, getattr(self, field), least=1)
        if self.checkpoint_dir is not None:
            _require_path("checkpoint_dir", self.checkpoint_dir)
        if self.adapters_only and self.strategy == "fsdp":
            raise ConfigurationError(
                "EngineConfig(adapters_only=True, strategy='fsdp') would leave out parameters that "
                "are sharded over processes, which checkpoints save in shards; leave out one."
            )
        if self.checkpoint_dir is None and (self.checkpoint_step is not None or self.keep_best):
            raise ConfigurationError(
                f"EngineConfig(checkpoint_step={self.checkpoint_step}, keep_best={self.keep_best}) "
                "asks for checkpoints, but no checkpoint_dir says where to; give one."
            )

    @property
    def logger_types(self) -> tuple[str | Logger, ...]:
        """The loggers other than the console, as a tuple."""
        given = self.logger_type
        if isinstance(given, (tuple, list)):
            return tuple(given)
        return (given,)


def _require_path(field: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ConfigurationError(f"EngineConfig({field}={value!r}) must be the path of a folder.")
