"""Training behind the estimator, and what is read from the trained networks."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from metaweight._batch_reader import BatchReader
from metaweight.engines import Engine
from metaweight.problems import Config, LossError, Reweighting
from metaweight.problems.data.batches import move_batch
from metaweight.weighting import (
    ClassAwareWeightNet,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    normalise_weights,
)
from metaweight.weighting.meta_weight_net import WeightOutput

from .inputs import Inputs
from .samples import Samples, TensorSamples
from .settings import Settings

MOMENTUM = 0.9
_RISE = 0.2
_CLEAN_BATCH = 128
USUAL = BatchReader("Reweighter")
"""Reads batches and outputs in which nothing has to be said."""


def train_reweighted(
    module: nn.Module, data: Samples, clean: Samples, settings: Settings
) -> nn.Module:
    """Train a classifier on weighted samples, in place, and return the weight network.

    Args:
        module: The classifier, of inputs of a batch to logits (B, C).
        data: Samples to train on.
        clean: Samples whose labels are trusted, which the weights are learned on.
        settings: How to train.
    """
    steps = settings.steps_of(len(data))
    dtype = Inputs.of_module(module).dtype
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        weigher = weight_network(settings.class_aware, settings.weight_output, settings.outputs).to(
            dtype
        )
        optimizer, scheduler = descent(module, settings, steps)
        classifier = WeightedClassifier(
            "classifier",
            Config(
                type=Reweighting(derivative="one_sided"),
                warmup_steps=round(settings.warmup * steps),
            ),
            weights="reweight",
            loss=settings.loss,
            normalise=True,
            module=module,
            optimizer=optimizer,
            scheduler=scheduler,
            logits=settings.logits,
            train_data_loader=data.loader(
                settings.batch_of(len(data)), seed=settings.seed, device=settings.device
            ),
        )
        learner = WeightLearner(
            "reweight",
            classifier="classifier",
            loss=settings.loss,
            module=weigher,
            optimizer=torch.optim.Adam(weigher.parameters(), lr=settings.meta_learning_rate),
            logits=settings.logits,
            train_data_loader=clean.loader(
                _CLEAN_BATCH, seed=settings.seed + 1, device=settings.device
            ),
        )
        Engine.bilevel(
            learner,
            classifier,
            train_iters=steps,
            valid_step=steps + 1,
            device=settings.device,
            precision=settings.precision,
            progress=settings.progress,
            hooks=settings.hooks,
        ).run()
    return weigher


def weight_network(class_aware: bool, output: WeightOutput, classes: int) -> nn.Module:
    """Return a network of a sample's loss, or of its loss and class."""
    if class_aware:
        return ClassAwareWeightNet(torch.arange(classes), output=output)
    return MetaWeightNet(output=output)


def descent(module: nn.Module, settings: Settings, steps: int) -> tuple[torch.optim.SGD, LambdaLR]:
    """Return SGD with Nesterov momentum, and a rate that rises for a fifth and falls to 0."""
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=settings.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    return optimizer, LambdaLR(optimizer, lambda step: one_cycle(step, steps))


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the learning rate: linearly up for a fifth of the steps, then down to 0.

    Source: Smith, "Super-Convergence", 2019 (arXiv:1708.07120), without the cycle of momentum.
    """
    top = max(1.0, _RISE * steps)
    return (step + 1) / top if step + 1 < top else max(0.0, (steps - step) / (steps - top + 1))


def inputs_that_fit(module: nn.Module, held: Any, reader: BatchReader) -> Inputs:
    """Return how samples become inputs of a network: integers of a table as floating numbers,
    unless the network takes no others than integers, as one that begins with an embedding does."""
    usual = Inputs.of_module(module)
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "iu":
        return usual
    for inputs in (usual, replace(usual, whole=True)):
        # What else may be amiss is told once the outputs are asked for.
        with contextlib.suppress(Exception):
            _evaluated(module, inputs.of(held[:2]), reader)
            return inputs
    return usual


def require_outputs(
    module: nn.Module, data: Samples, shape: tuple[int, ...], what: str, reader: BatchReader
) -> None:
    """Refuse a network whose outputs are not what they are taken for.

    Raises:
        ValueError: Saying which shape they have.
    """
    inputs, targets = next(data.in_order(2))
    found = _evaluated(module, inputs, reader)
    module.train()
    expected = (len(targets), *shape)
    if found.shape != expected:
        raise ValueError(
            f"The module gives outputs of shape {tuple(found.shape)} for {len(targets)} samples; "
            f"{what} have shape {expected}."
        )


def logits_of(module: nn.Module, data: Samples | Tensor, reader: BatchReader = USUAL) -> Tensor:
    """Return the outputs of samples, (N, …), in evaluation mode, on the CPU and in float64."""
    samples = TensorSamples(data, torch.zeros(len(data))) if isinstance(data, Tensor) else data
    parts = [_evaluated(module, inputs, reader).double().cpu() for inputs, _ in samples.in_order()]
    return torch.cat(parts)


def finite_outputs(module: nn.Module, data: Samples, reader: BatchReader) -> Tensor:
    """Return the outputs of samples by a trained network, as :func:`logits_of` does.

    Raises:
        LossError: For some that are not finite.
    """
    outputs = logits_of(module, data, reader)
    if not outputs.isfinite().all():
        raise LossError(
            f"{reader.who} diverged: the trained network gives numbers that are not finite; "
            "lower learning_rate or meta_learning_rate, or scale the samples."
        )
    return outputs


def _evaluated(module: nn.Module, inputs: Any, reader: BatchReader) -> Tensor:
    module.eval()
    with torch.no_grad():
        return reader.predict(module, move_batch(inputs, next(module.parameters()).device))


def weights_of(weigher: nn.Module, losses: Tensor, labels: Tensor) -> Tensor:
    """Return the weights of samples by their losses and labels, (N,), of mean 1, on the CPU."""
    parameter = next(weigher.parameters())
    with torch.no_grad():
        weights = weigher(losses.to(parameter.device, parameter.dtype), labels.to(parameter.device))
    return normalise_weights(weights.double().cpu())
