"""What is recorded of each epoch, and which epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaweight._batch_reader import BatchReader
from metaweight.engines import Engine, Hook
from metaweight.problems import ConfigurationError, Problem, StepResult

from .losses import losses_of
from .samples import Samples
from .targets import Targets
from .training import logits_of

Measure = Callable[[nn.Module], Mapping[str, float]]
HELD_OUT_LOSS = "held_out_loss"


class EpochRecords(Hook):
    """Makes a record of each epoch, for other hooks, the progress bar and functions.

    Of the training steps: ``epoch`` from 1, ``loss``, the mean before weighting; ``clean_loss``,
    that of the weights' steps on clean samples; ``effective_share``, ``(Σ w)² / (N Σ w²)``, the
    share of samples that count; of classes ``accuracy`` and ``contradicted_weight``, the share of
    the weight on samples whose label is not the most probable one.

    Args:
        steps: Steps of an epoch.
        measures: Functions of the network in evaluation mode that add to the record.
        functions: Called with each record.
    """

    only_shows = True

    def __init__(
        self,
        steps: int,
        measures: Iterable[Measure],
        functions: Iterable[Callable[[dict[str, float]], Any]],
    ) -> None:
        self.records: list[dict[str, float]] = []
        self._steps = steps
        self._measures = tuple(measures)
        self._functions = tuple(functions)
        self._sums: dict[str, Tensor] = {}

    def after_step(self, engine: Engine, problem: Problem, result: StepResult) -> None:
        del engine
        losses, weights = result.sample_losses, result.sample_weights
        if losses is None or weights is None:
            self._add(clean_loss=result.loss, clean=torch.ones_like(result.loss))
            return
        self._add(loss=losses.sum(), samples=torch.ones_like(losses).sum())
        self._add(weight=weights.sum(), squares=weights.square().sum())
        if result.sample_logits is not None:
            wrong = result.sample_logits.argmax(1) != problem.cur_batch[1]
            self._add(wrong=wrong.sum(), wrong_weight=(weights * wrong).sum())

    def iteration_end(self, engine: Engine) -> None:
        iteration = engine.run_state.iteration
        if iteration % self._steps:
            return
        record = {"epoch": iteration // self._steps, **self._read()}
        if self._measures:
            engine.eval()
            for measure in self._measures:
                record |= measure(engine.classifier.module)
            engine.train()
        self.records.append(record)
        engine.hooks.after_validation(engine, record)
        for function in self._functions:
            function(dict(record))
        if engine.run_state.stopped is not None or iteration >= engine.train_iters:
            # A loader tells that it has ended when more is asked of it, which no step does now.
            engine.hooks.epoch_end(engine, engine.classifier)

    def history(self) -> dict[str, NDArray[np.float64]]:
        """Return the values of all epochs by name, (E,) each."""
        names = self.records[0] if self.records else ()
        return {name: np.array([record[name] for record in self.records]) for name in names}

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _read(self) -> dict[str, float]:
        """Return the values of an epoch, and begin another."""
        sums = {name: float(value) for name, value in self._sums.items()}
        self._sums = {}
        samples, weight = sums["samples"], sums["weight"]
        found = {
            "loss": sums["loss"] / samples,
            "clean_loss": sums["clean_loss"] / sums["clean"] if "clean" in sums else math.nan,
            "effective_share": weight**2 / (samples * sums["squares"]) if weight else 0.0,
        }
        if "wrong" in sums:
            found["accuracy"] = 1 - sums["wrong"] / samples
            found["contradicted_weight"] = sums["wrong_weight"] / weight if weight else 0.0
        return found


def measures_of(
    samples: Mapping[str, Samples | None], targets: Targets, loss: Any, reader: BatchReader
) -> list[Measure]:
    """Return functions that measure a network on samples, given by the prefix of their values."""

    def measure(prefix: str, samples: Samples, module: nn.Module) -> dict[str, float]:
        outputs, expected = logits_of(module, samples, reader), samples.targets
        losses = losses_of(reader.who, loss, outputs, expected, next(module.parameters()))
        found = {"loss": float(losses.mean()), **targets.quality(outputs, expected)}
        return {prefix + name: value for name, value in found.items()}

    return [partial(measure, name, part) for name, part in samples.items() if part is not None]


class BestEpoch(Hook):
    """Keeps the networks of the epoch with the smallest loss on clean samples held out.

    Attributes:
        epoch: That epoch.
    """

    only_shows = True

    def __init__(self) -> None:
        self.epoch = 0
        self._least = math.inf
        self._kept: dict[str, dict[str, Tensor]] = {}

    def after_validation(self, engine: Engine, stats: Mapping[str, Any]) -> None:
        loss = stats[HELD_OUT_LOSS]
        # Nothing is less than a loss that is not a number.
        better = loss < self._least or (math.isnan(self._least) and not math.isnan(loss))
        if better or not self._kept:
            self.epoch, self._least = int(stats["epoch"]), loss
            self._kept = {
                problem.name: {k: v.clone() for k, v in problem.module.state_dict().items()}
                for problem in engine.problems
            }

    def run_end(self, engine: Engine) -> None:
        """Restore them."""
        if not self._kept:
            return
        for problem in engine.problems:
            problem.module.load_state_dict(self._kept[problem.name])
        engine.logger.info(
            f"Kept is epoch {self.epoch}, whose {HELD_OUT_LOSS} of {self._least:.4g} is the least."
        )


def split_callbacks(who: str, given: Any) -> tuple[list[Hook], list[Callable[..., Any]]]:
    """Return hooks of the engine, and functions of a record, among callbacks.

    Raises:
        ConfigurationError: For others.
    """
    callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
    hooks = [each for each in callbacks if isinstance(each, Hook)]
    functions = [each for each in callbacks if not isinstance(each, Hook)]
    for each in functions:
        if not callable(each) or isinstance(each, type):
            raise ConfigurationError(
                f"{who} received the callback {each!r}; give functions of a record of an epoch, or "
                "hooks of the engine."
            )
    return hooks, functions
