"""The 18-layer residual network for 32 × 32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._images import require_images
from ._initialise import kaiming_normal, require_settings


class _Block(nn.Module):
    """``ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`` with 3 × 3 convolutions.

    The shortcut is the identity where shapes agree, else a 1 × 1 convolution with batch norm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(in_channels, channels, stride), _Block(channels, channels, 1))


class ResNet18(nn.Module):
    """ResNet-18 of He et al., "Deep Residual Learning for Image Recognition" (2016), for CIFAR.

    A 3 × 3 convolution without max-pooling in place of the 7 × 7 one for large images, four stages
    of two blocks with 64, 128, 256 and 512 channels, global average pooling and a linear layer.
    Shortcuts that change the shape are 1 × 1 convolutions (option B). 11 173 962 parameters for 10
    classes.

    Args:
        num_classes: Number of outputs.
        generator: Source of the initial weights, N(0, 2 / fan_in), on the device they are made on;
            ``None`` uses torch's global generator, as ``torch.nn`` layers do.

    Shapes:
        Images (B, 3, H, W), usually 32 × 32, to logits (B, num_classes).

    Raises:
        ConfigurationError: For settings out of range or of another type.
    """

    def __init__(self, num_classes: int = 10, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        require_settings("ResNet18", num_classes, generator)
        self.conv = _conv3x3(3, 64, 1)
        self.norm = nn.BatchNorm2d(64)
        self.stage1 = _stage(64, 64, stride=1)
        self.stage2 = _stage(64, 128, stride=2)
        self.stage3 = _stage(128, 256, stride=2)
        self.stage4 = _stage(256, 512, stride=2)
        self.linear = nn.Linear(512, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, 3, H, W).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images("ResNet18", x, 3)
        x = F.relu(self.norm(self.conv(x)))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
