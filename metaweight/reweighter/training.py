"""Training behind the estimator, and what is read from the trained networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from metaweight.data import LabelledTensors, TensorLoader
from metaweight.engines import Engine
from metaweight.problems import Config, Reweighting
from metaweight.weighting import (
    ClassAwareWeightNet,
    MetaWeightNet,
    WeightedClassifier,
    WeightLearner,
    normalise_weights,
)

from .settings import Settings

MOMENTUM = 0.9
_RISE = 0.2
_EVALUATED_TOGETHER = 1024
_CLEAN_BATCH = 128


def train_reweighted(
    module: nn.Module, data: LabelledTensors, clean: LabelledTensors, settings: Settings
) -> nn.Module:
    """Train a classifier on weighted samples, in place, and return the weight network.

    Args:
        module: The classifier, (B, …) to logits (B, C).
        data: Samples to train on.
        clean: Samples whose labels are trusted, which the weights are learned on.
        settings: How to train.
    """
    steps = settings.steps_of(len(data))
    dtype = data.inputs.dtype
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        weigher = weight_network(settings.class_aware, data.num_classes).to(dtype)
        optimizer, scheduler = descent(module, settings, steps)
        classifier = WeightedClassifier(
            "classifier",
            Config(
                type=Reweighting(derivative="one_sided"),
                warmup_steps=round(settings.warmup * steps),
            ),
            weights="reweight",
            normalise=True,
            module=module,
            optimizer=optimizer,
            scheduler=scheduler,
            train_data_loader=TensorLoader(
                data, settings.batch_of(len(data)), seed=settings.seed, device=settings.device
            ),
        )
        learner = WeightLearner(
            "reweight",
            classifier="classifier",
            module=weigher,
            optimizer=torch.optim.Adam(weigher.parameters(), lr=settings.meta_learning_rate),
            train_data_loader=TensorLoader(
                clean, _CLEAN_BATCH, seed=settings.seed + 1, device=settings.device
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
        ).run()
    return weigher


def weight_network(class_aware: bool, classes: int) -> nn.Module:
    """Return a network of a sample's loss, or of its loss and class."""
    return ClassAwareWeightNet(torch.arange(classes)) if class_aware else MetaWeightNet()


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


def require_width(module: nn.Module, data: LabelledTensors) -> None:
    """Refuse a network whose outputs are not logits of the classes.

    Raises:
        ValueError: Saying which shape they have.
    """
    module.eval()
    few = data.inputs[:2]
    with torch.no_grad():
        found = module(few.to(next(module.parameters()).device))
    module.train()
    expected = (len(few), data.num_classes)
    if found.shape != expected:
        raise ValueError(
            f"The module gives outputs of shape {tuple(found.shape)} for {len(few)} samples; "
            f"logits of {data.num_classes} classes have shape {expected}."
        )


def logits_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits of samples, (N, C), in evaluation mode, on the CPU and in float64."""
    parameter = next(module.parameters())
    module.eval()
    with torch.no_grad():
        parts = [
            module(part.to(parameter.device)).double().cpu()
            for part in torch.split(inputs, _EVALUATED_TOGETHER)
        ]
    return torch.cat(parts)


def weights_of(weigher: nn.Module, losses: Tensor, labels: Tensor) -> Tensor:
    """Return the weights of samples by their losses and labels, (N,), of mean 1, on the CPU."""
    parameter = next(weigher.parameters())
    with torch.no_grad():
        weights = weigher(losses.to(parameter.device, parameter.dtype), labels.to(parameter.device))
    return normalise_weights(weights.double().cpu())


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")
