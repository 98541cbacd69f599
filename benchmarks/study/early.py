"""Learned weights over early-learning regularisation.

``l_i = CE_i + λ log(1 - ⟨p_i, t_i⟩)``, and the weight of a sample is ``V(CE_i)``. The target is
that from before the step, a constant, so that a displaced pass finds the same one; it moves
afterwards: ``t_i ← β t_i + (1 - β) p_i``. See :mod:`metaweight.noise` for the regularisation alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight.weighting import WeightedClassifier

BETA = 0.7
LAM = 3.0
LEAST = 1e-4


class WithTargets(nn.Module):
    """A network with the target of every sample, which checkpoints hold with it.

    Args:
        network: The network.
        samples: Number of training samples.
        classes: Number of classes.
    """

    targets: Tensor

    def __init__(self, network: nn.Module, samples: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("targets", torch.zeros(samples, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the network."""
        outputs: Tensor = self.network(inputs)
        return outputs


class EarlyLearner(WeightedClassifier):
    """A classifier whose weighted losses are regularised; its module is ``WithTargets``.

    Batches are ``(inputs, labels, positions)``, and get the targets from before the step.
    """

    def get_batch(self) -> Any:
        """Return the next batch with the targets of its samples."""
        batch = self.get_batch_single_loader(0)
        return (*batch, self.module.targets[batch[2]])

    def sample_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the regularised losses and the cross-entropies, each (B,)."""
        inputs, labels, positions, before = batch
        logits = self.module(inputs)
        log_p = logits.to(before.dtype).log_softmax(1)
        p = log_p.exp().clamp(LEAST, 1 - LEAST)
        with torch.no_grad():
            self.module.targets[positions] = BETA * before + (1 - BETA) * p / p.sum(1, keepdim=True)
        self.note_logits(logits)
        losses = F.nll_loss(log_p, labels, reduction="none")
        return losses + LAM * torch.log1p(-(before * p).sum(1)), losses

    def sample_weights(self, losses: Tensor, batch: Any, features: Any = None) -> Tensor:
        """Return the weight of each sample, (B,), from its cross-entropy."""
        del losses
        return super().sample_weights(features, batch)
