"""The weight network of Meta-Weight-Net.

Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting",
NeurIPS 2019 (arXiv:1902.07379).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_count


class MetaWeightNet(nn.Module):
    """``V(l) = sigmoid(MLP(l))``: a weight in (0, 1) for each sample loss.

    Args:
        hidden_size: Width of the hidden layers; 100 in the paper.
        num_layers: Hidden layers; 1 in the paper.
    """

    def __init__(self, hidden_size: int = 100, num_layers: int = 1) -> None:
        super().__init__()
        self.layers = weight_mlp(1, hidden_size, num_layers)

    def forward(self, losses: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return one weight per loss, in the shape of ``losses``: (B,) or (B, 1).

        Args:
            losses: Sample losses, without a graph.
            classes: Ignored; accepted so that weight networks are interchangeable.

        Raises:
            LossError: For losses of another shape.
        """
        del classes
        return torch.sigmoid(self.layers(loss_column(losses))).reshape(losses.shape)


def weight_mlp(inputs: int, hidden_size: int, num_layers: int) -> nn.Sequential:
    """Return ``Linear → ReLU`` repeated ``num_layers`` times, then ``Linear`` to one output."""
    if not is_count(hidden_size, least=1) or not is_count(num_layers, least=1):
        raise ConfigurationError(
            f"A weight network of hidden_size={hidden_size}, num_layers={num_layers} has no hidden "
            "unit; both must be at least 1."
        )
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(inputs, hidden_size), nn.ReLU()]
        inputs = hidden_size
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


def loss_column(losses: Tensor) -> Tensor:
    """Return losses of shape (B,) or (B, 1) as (B, 1).

    Raises:
        LossError: For any other shape.
    """
    floating = losses.is_floating_point()
    if not floating or losses.ndim not in (1, 2) or losses.numel() != losses.shape[0]:
        raise LossError(
            f"A weight network received losses of shape {tuple(losses.shape)} and type "
            f"{losses.dtype}; give one loss per sample, (B,) or (B, 1), for instance "
            "with reduction='none'."
        )
    return losses.reshape(-1, 1)
