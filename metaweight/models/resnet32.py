"""The 32-layer residual network for 32 × 32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._images import require_images
from ._initialise import kaiming_normal, require_settings

_BLOCKS_PER_STAGE = 5


class _Shortcut(nn.Module):
    """Identity where shapes agree; else every second pixel, with zeros for the new channels."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return x


class _Block(nn.Module):
    """``ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`` with 3 × 3 convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = _Shortcut(channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    blocks = [_Block(in_channels, channels, stride)]
    blocks += [_Block(channels, channels, 1) for _ in range(_BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(*blocks)


class ResNet32(nn.Module):
    """CIFAR ResNet-32 of He et al., "Deep Residual Learning for Image Recognition" (2016).

    One 3 × 3 convolution, three stages of five blocks with 16, 32 and 64 channels, global average
    pooling and a linear layer. Shortcuts that change the shape have no parameters (option A).
    464 154 parameters for 10 classes.

    Args:
        num_classes: Number of outputs.
        generator: Source of the initial weights, N(0, 2 / fan_in), on the device they are made on;
            ``None`` uses torch's global generator, as ``torch.nn`` layers do.

    Shapes:
        Images (B, 3, H, W), 32 × 32 in the paper, to logits (B, num_classes).

    Raises:
        ConfigurationError: For settings out of range or of another type.
    """

    def __init__(self, num_classes: int = 10, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        require_settings("ResNet32", num_classes, generator)
        self.conv = _conv3x3(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = _stage(16, 16, stride=1)
        self.stage2 = _stage(16, 32, stride=2)
        self.stage3 = _stage(32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, 3, H, W).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images("ResNet32", x, 3)
        x = F.relu(self.norm(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
