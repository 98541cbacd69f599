"""Weights learned from each sample's loss averaged over the epochs.

The loss of one moment is noisy; a label that is wrong has a large loss most of the time. With the
losses ``l_t`` of the steps that drew a sample, its weight is ``V(a_t)`` with
``a_t = 0.7 a_{t-1} + 0.3 l_t``, starting from the first loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight.weighting import WeightedClassifier

KEPT = 0.7
_UNSEEN = -1.0


class WithAverages(nn.Module):
    """A network with the average loss of every sample, which checkpoints hold with it.

    Args:
        network: The network.
        samples: Number of training samples.
    """

    averages: Tensor

    def __init__(self, network: nn.Module, samples: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("averages", torch.full((samples,), _UNSEEN))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the network."""
        outputs: Tensor = self.network(inputs)
        return outputs


class AveragedClassifier(WeightedClassifier):
    """A classifier whose weights are learned from average losses; its module is ``WithAverages``.

    Batches are ``(inputs, labels, positions)``, and get the averages from before the step, so that
    a hypergradient that evaluates the step again finds the same ones.
    """

    def get_batch(self) -> Any:
        """Return the next batch with the averages of its samples."""
        batch = self.get_batch_single_loader(0)
        return (*batch, self.module.averages[batch[2]])

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        """Return the weight of each sample, (B,), from its average loss."""
        positions, before = batch[2], batch[3]
        seen = before != _UNSEEN
        averages = torch.where(seen, KEPT * before + (1 - KEPT) * losses, losses)
        with torch.no_grad():
            self.module.averages[positions] = averages.to(before.dtype)
        return super().sample_weights(averages, batch)
