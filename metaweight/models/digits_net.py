"""A small convolutional network for 8 × 8 digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._images import require_images
from ._initialise import kaiming_normal, require_settings


class DigitsNet(nn.Module):
    """Three 3 × 3 convolutions with batch norm and ReLU, global average pooling, a linear layer.

    32, 64 and 64 channels with strides 1, 2 and 2; 56 554 parameters for 10 classes.

    Args:
        num_classes: Number of outputs.
        generator: Source of the initial weights, N(0, 2 / fan_in), on the device they are made on;
            ``None`` uses torch's global generator, as ``torch.nn`` layers do.

    Shapes:
        Images (B, 1, 8, 8) to logits (B, num_classes).

    Raises:
        ConfigurationError: For settings out of range or of another type.
    """

    def __init__(self, num_classes: int = 10, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        require_settings("DigitsNet", num_classes, generator)
        self.features = nn.Sequential(
            *_convolution(1, 32, stride=1),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 64, stride=2),
        )
        self.linear = nn.Linear(64, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, 1, 8, 8).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images("DigitsNet", x, 1)
        logits: Tensor = self.linear(self.features(x).mean(dim=(2, 3)))
        return logits


def _convolution(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
