"""How the estimator trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from metaweight._batch import Part
from metaweight.engines import Hook
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import is_between, is_count, is_positive
from metaweight.weighting.meta_weight_net import WeightOutput

_LEAST_BATCHES = 10
_SMALLEST, _LARGEST = 8, 128


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        epochs: Passes over the training samples.
        batch_size: Samples in a batch; ``None`` for a tenth of the samples, from 8 to 128.
        learning_rate: Largest learning rate of the classifier's SGD.
        weight_decay: Weight decay of the classifier.
        meta_learning_rate: Learning rate of the weight network's Adam.
        class_aware: Whether weights depend on the class as well as on the loss.
        weight_output: Output of the weight network.
        warmup: Share of the steps before the weight network starts.
        clean_fraction: Share of each class that is taken for clean; ``None`` for a tenth.
        seed: Source of all random numbers.
        device: Device; chosen by the engine where ``None``.
        precision: As for :class:`~metaweight.EngineConfig`.
        progress: As for :class:`~metaweight.EngineConfig`.
        logits: As for :class:`~metaweight.weighting.WeightedClassifier`.
        early_stopping: Whether to hold out clean samples, and keep the epoch that is best on them.
        patience: Epochs without improvement before stopping.
        held_out: Share of the clean samples of each class that is held out.
        loss: A function of outputs and targets that returns one loss a sample.
        outputs: Number of outputs of the network; known once the labels are.
        hooks: Hooks of the run.
    """

    epochs: int
    batch_size: int | None
    learning_rate: float
    weight_decay: float
    meta_learning_rate: float
    class_aware: bool
    weight_output: WeightOutput
    warmup: float
    clean_fraction: float | None
    seed: int
    device: str | None
    precision: str | None
    progress: bool
    logits: Part = None
    early_stopping: bool = False
    patience: int = 5
    held_out: float = 0.3
    loss: Any = None
    outputs: int = 0
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        if not is_count(self.epochs, least=1):
            raise ConfigurationError(f"epochs={self.epochs!r} was given; use at least 1.")
        if self.batch_size is not None and not is_count(self.batch_size, least=1):
            raise ConfigurationError(
                f"batch_size={self.batch_size!r} was given; use at least 1, or None."
            )
        for name in ("learning_rate", "meta_learning_rate"):
            if not is_positive(getattr(self, name)):
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} was given; use a number above 0."
                )
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"warmup={self.warmup!r} was given; use a share in [0, 1).")

        if not is_count(self.patience, least=1):
            raise ConfigurationError(f"patience={self.patience!r} was given; use at least 1.")
        if not is_between(self.held_out, 0, 1):
            raise ConfigurationError(
                f"held_out={self.held_out!r} was given; use a share in (0, 1)."
            )
        share = self.clean_fraction
        if share is not None and not (0 < share <= 1):
            raise ConfigurationError(
                f"clean_fraction={share!r} was given; use a share in (0, 1], or None."
            )

    @classmethod
    def of(cls, estimator: Any) -> Settings:
        """Return those of an estimator, whose parameters have the same names.

        Raises:
            ConfigurationError: For one out of range.
        """
        names = [each.name for each in fields(cls) if each.name not in ("seed", "outputs", "hooks")]
        random = check_random_state(estimator.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        return cls(seed=seed, **{name: getattr(estimator, name) for name in names})

    def batch_of(self, samples: int) -> int:
        """Return the samples in a batch."""
        if self.batch_size is not None:
            return min(self.batch_size, samples)
        return min(max(samples // _LEAST_BATCHES, _SMALLEST), _LARGEST, samples)

    def steps_of_epoch(self, samples: int) -> int:
        """Return the steps of an epoch."""
        return math.ceil(samples / self.batch_of(samples))

    def steps_of(self, samples: int) -> int:
        """Return the steps of a run."""
        return self.epochs * self.steps_of_epoch(samples)
