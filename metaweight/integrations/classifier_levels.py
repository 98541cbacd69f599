"""A weighted classifier and its weight learner, in a loop that steps the classifier by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight.problems import Config
from metaweight.weighting import WeightedClassifier, WeightLearner

from .two_levels import TwoLevels, lower_config
from .weighting_config import WeightingConfig

CLASSIFIER, LEARNER = "classifier", "weight_learner"


def classifier_levels(
    config: WeightingConfig,
    network: nn.Module,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    clean: Any,
    *,
    steps: int,
    device: torch.device,
    precision: str,
    kind: type[WeightedClassifier] = WeightedClassifier,
    **reading: Any,
) -> TwoLevels:
    """Return both levels of a classifier.

    Args:
        config: How weights are learned.
        network: The weight network, trained in place.
        module: The classifier's network.
        optimizer: Its optimizer; each of its steps ends an update.
        clean: Batches of clean samples.
        steps: Optimizer steps of the run.
        device: Where both live.
        precision: ``"fp32"`` or ``"bf16"``, of the classifier's passes.
        kind: Class of the classifier.
        **reading: ``loss``, ``inputs``, ``labels`` and ``logits`` as for
            :class:`~metaweight.weighting.WeightedClassifier`.

    Raises:
        MetaweightError: What an engine refuses.
    """
    if any(p.dtype == torch.float64 for p in module.parameters()):
        network.double()
    classifier = kind(
        CLASSIFIER,
        lower_config(config, steps, precision),
        weights=LEARNER,
        normalise=config.normalise,
        module=module,
        optimizer=optimizer,
        train_data_loader=[None],
        **reading,
    )
    learner = WeightLearner(
        LEARNER,
        Config(precision=precision),
        classifier=CLASSIFIER,
        module=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=config.learning_rate),
        train_data_loader=clean,
        **reading,
    )
    return TwoLevels(classifier, learner, optimizer, device)


@torch.no_grad()
def weights_of(levels: TwoLevels, batch: Any) -> Tensor:
    """Return the weights of a batch, (B,), in the present mode of the network and before they are
    normalised."""
    assert isinstance(levels.lower, WeightedClassifier)
    losses = levels.lower.checked_samples(batch).losses
    found: Tensor = levels.learner(losses, levels.lower.parts_of(batch).labels)
    return found.reshape(-1)
