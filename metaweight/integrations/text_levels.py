"""A weighted language model and its weights, on batches of a ``transformers.Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaweight.lm import CleanLM, WeightedLM
from metaweight.lm.token_losses import TokenLosses, counted_tokens
from metaweight.lm.weighers import as_precise_as
from metaweight.problems import Config

from .text_weighting import TextWeighting
from .trainer_batches import own_forward
from .two_levels import TwoLevels, lower_config

LM, LEARNER = "lm", "data_weights"


class TrainerLM(WeightedLM):
    """A weighted language model whose batches are micro-batches of the Trainer."""

    def read(self, batch: Any, *, pooled: bool) -> TokenLosses:
        # Here, as a pass that is computed again comes back to no other place.
        with own_forward(self.module):
            return super().read(batch, pooled=pooled)

    def sample_losses(self, batch: Any) -> tuple[Tensor, Any]:
        return super().sample_losses(batch.inputs)

    def sample_weights(self, losses: Tensor, batch: Any, features: Mapping[str, Any]) -> Tensor:
        weights = super().sample_weights(losses, batch.inputs, features)
        return weights if batch.share is None else weights * batch.share


def text_levels(
    config: TextWeighting,
    weigher: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clean: Any,
    *,
    steps: int,
    device: torch.device,
    precision: str,
) -> TwoLevels:
    """Return both levels of a language model.

    Args:
        config: How weights are learned.
        weigher: What computes them, trained in place.
        model: The language model.
        optimizer: Its optimizer; each of its steps ends an update.
        clean: Batches of clean texts.
        steps: Optimizer steps of the run.
        device: Where both live.
        precision: ``"fp32"`` or ``"bf16"``, of the model's passes.

    Raises:
        MetaweightError: What an engine refuses.
    """
    as_precise_as(weigher, model)
    lm = TrainerLM(
        LM,
        lower_config(config, steps, precision),
        weights=LEARNER,
        level=config.level,
        average=config.average,
        micro_batch_size=config.micro_batch_size,
        source=config.source,
        module=model,
        optimizer=optimizer,
        train_data_loader=[None],
    )
    learner = CleanLM(
        LEARNER,
        Config(precision=precision),
        model=LM,
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), lr=config.rate),
        train_data_loader=clean,
    )
    return TwoLevels(lm, learner, optimizer, device)


def units_of(batch: Mapping[str, Any], average: str) -> Tensor:
    """Return how many tokens of a batch, or sequences with such a token, its mean is over."""
    counted = counted_tokens(batch)
    return counted.sum() if average == "tokens" else counted.any(1).sum()
