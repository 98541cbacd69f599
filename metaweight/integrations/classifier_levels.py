"""A weighted classifier and its weight learner, in a loop that steps the classifier by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaweight.problems import Config
from metaweight.weighting import WeightedClassifier, WeightLearner
from metaweight.weighting.problems import over_labelled

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
def weights_of(levels: TwoLevels, batches: Iterable[Any]) -> Tensor:
    """Return the weights of the samples of batches, (N,), in the present mode of the network and
    before they are normalised; 0 for samples without a label."""
    lower = levels.lower
    assert isinstance(lower, WeightedClassifier)
    found, kept = [], []
    for batch in batches:
        losses = lower.checked_samples(batch).losses
        labels = lower.parts_of(batch).labels
        weights, labelled = lower.weights_and_kept(losses, labels, losses.device)
        found.append(weights.reshape(-1))
        whole = torch.ones_like(found[-1], dtype=torch.bool)
        kept.append(whole if labelled is None else labelled.reshape(-1))
    return over_labelled(torch.cat(found), torch.cat(kept))
