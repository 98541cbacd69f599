"""The network for tables of numbers, taken where none is given."""

from __future__ import annotations

from torch import Tensor, nn


class DenseNet(nn.Module):
    """Two hidden layers with ReLU: ``Linear → ReLU → Linear → ReLU → Linear``.

    Args:
        features: Number of inputs.
        num_classes: Number of outputs.
        hidden_size: Width of the hidden layers.

    Shapes:
        Inputs (B, features) to logits (B, num_classes).
    """

    def __init__(self, features: int, num_classes: int, hidden_size: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        logits: Tensor = self.layers(inputs)
        return logits
