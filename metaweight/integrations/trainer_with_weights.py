"""A ``transformers.Trainer`` beside whose optimizer weights take their steps."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaweight.engines.checkpoint.file import Manifest, read_checkpoint, write_checkpoint
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import require_count

from .required import required_for
from .two_levels import TwoLevels

with required_for(__name__, "huggingface"):
    from transformers import Trainer

STATE = "sample_weights.pt"
"""File of the weight network's state in a checkpoint folder."""


class TrainerWithWeights(Trainer):  # type: ignore[misc]
    """A Trainer that connects its optimizer to two levels, and keeps the state of the upper one."""

    # Of a batch: the Trainer divides it by the number of batches in an update.
    loss_is_scaled_for_ga = False

    _levels: TwoLevels | None = None

    @property
    def weight_network(self) -> nn.Module | None:
        """The weight network; ``None`` before training has begun."""
        return None if self._levels is None else self._levels.learner.module

    @property
    def levels(self) -> TwoLevels:
        """Both levels.

        Raises:
            ConfigurationError: Before training has begun.
        """
        if self._levels is None:
            raise ConfigurationError(
                f"{type(self).__name__} has learned no weights yet; call train() first."
            )
        return self._levels

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Make the scheduler, and connect the weight network to the optimizer."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        stepping: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        levels = self._levels
        if (
            levels is None
            or levels.optimizer is not stepping
            or levels.lower.module is not self.model
        ):
            self._levels = self._connected(stepping, num_training_steps)
        return scheduler

    @abstractmethod
    def _connected(self, optimizer: torch.optim.Optimizer, steps: int) -> TwoLevels:
        """Return the levels beside an optimizer that takes so many steps."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._levels is not None:
            manifest = Manifest(self.state.global_step, "transformers")
            write_checkpoint(Path(output_dir) / STATE, manifest, self._levels.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._levels is not None:
            self._levels.load_state_dict(read_checkpoint(Path(checkpoint) / STATE)[1])


def require_supported(trainer: Trainer, clean_batch_size: int | None) -> None:
    """Refuse settings of a Trainer with which weights cannot be learned.

    Raises:
        ConfigurationError: Naming the setting, and what to do.
    """
    args = trainer.args
    if clean_batch_size is not None:
        require_count(type(trainer).__name__, "clean_batch_size", clean_batch_size, least=1)
    several = "several devices or processes"
    refuse(
        trainer,
        (args.n_gpu > 1 or args.world_size > 1, several, "let the process see one device"),
        (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled, "sharding", "leave it out"),
        (args.fp16, "fp16=True", "use bf16=True or neither"),
        (args.torch_compile, "torch_compile=True", "leave it out"),
        (args.use_liger_kernel, "use_liger_kernel=True, which gives no logits", "leave it out"),
        (args.optim in ("lomo", "adalomo"), f"optim={args.optim.value!r}", "use another one"),
        (args.auto_find_batch_size, "auto_find_batch_size=True", "give a batch size"),
    )


def refuse(trainer: Trainer, *rows: tuple[bool, str, str]) -> None:
    """Refuse the first row that holds: whether it does, what was received, and what to do.

    Raises:
        ConfigurationError: Then.
    """
    for refused, what, remedy in rows:
        if refused:
            raise ConfigurationError(
                f"{type(trainer).__name__} received {what}, with which it cannot learn weights; "
                f"{remedy}."
            )
