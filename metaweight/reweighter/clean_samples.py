"""Clean samples: what is asked of those given, and which to trust where none are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaweight.data import LabelledTensors
from metaweight.noise import CrossValidatedConfidence

from .settings import Settings
from .training import MOMENTUM

_FOLDS = 3


def require_every_class(X: NDArray[Any], y: NDArray[Any], classes: NDArray[Any]) -> None:
    """Refuse clean samples without a label each, of another class, or not of every class.

    Raises:
        ValueError: Naming what is wrong.
    """
    if len(X) != len(y):
        raise ValueError(
            f"clean holds {len(X)} samples and {len(y)} labels; give one label for each."
        )
    for kind, found in (
        ("clean labels hold the class", np.setdiff1d(y, classes)),
        ("no clean sample is of the class", np.setdiff1d(classes, y)),
    ):
        if len(found):
            raise ValueError(
                f"{kind} {found.tolist()[0]!r}; give clean samples of each of the classes of y, "
                f"{classes.tolist()}, and of no other."
            )


def trusted_samples(
    make_module: Callable[[], nn.Module], data: LabelledTensors, settings: Settings
) -> Tensor:
    """Return positions of the samples whose labels out-of-fold predictions confirm best.

    Of each class a share of its samples is taken, at least one: those whose label has the
    largest predicted probability, predictions coming from networks that have not seen the sample.
    It is weaker than samples that were looked at: what all networks get wrong, they confirm. With
    fewer than six samples all are taken.

    Args:
        make_module: Makes a network, from torch's global random stream.
        data: The samples.
        settings: How to train.
    """
    if len(data) < 2 * _FOLDS:
        return torch.arange(len(data))
    share = 0.1 if settings.clean_fraction is None else settings.clean_fraction
    probabilities = out_of_fold_probabilities(make_module, data, settings)
    confidence = probabilities.gather(1, data.labels[:, None]).squeeze(1)
    found = [
        _most_confident(data.labels == number, confidence, share)
        for number in range(data.num_classes)
    ]
    return torch.cat(found)


def out_of_fold_probabilities(
    make_module: Callable[[], nn.Module], data: LabelledTensors, settings: Settings
) -> Tensor:
    """Return class probabilities, (N, C), by networks that have not seen the sample."""
    training = len(data) - math.ceil(len(data) / _FOLDS)

    def optimizer(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            module.parameters(),
            # Half, since it does not fall.
            lr=settings.learning_rate / 2,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )

    search = CrossValidatedConfidence(
        make_module,
        optimizer,
        folds=_FOLDS,
        steps=settings.steps_of(training),
        batch_size=settings.batch_of(training),
        seed=settings.seed,
        device=settings.device,
    )
    return search.probabilities(data)


def _most_confident(mask: Tensor, confidence: Tensor, share: float) -> Tensor:
    positions = mask.nonzero().squeeze(1)
    number = max(1, round(share * len(positions)))
    return positions[confidence[positions].argsort(descending=True, stable=True)[:number]]
