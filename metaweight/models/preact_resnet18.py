"""The 18-layer residual network of pre-activation blocks for 32 × 32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._images import require_images
from ._initialise import kaiming_normal, require_settings
from ._pre_activation import conv3x3, stage


class PreActResNet18(nn.Module):
    """PreAct ResNet-18 of He et al., "Identity Mappings in Deep Residual Networks" (2016).

    For CIFAR, as methods for noisy labels are compared with it since Li et al., "DivideMix" (ICLR
    2020): a 3 × 3 convolution, four stages of two pre-activation blocks with 64, 128, 256 and 512
    channels and strides 1, 2, 2 and 2, batch norm, ReLU, global average pooling and a linear layer.
    Shortcuts that change the shape are 1 × 1 convolutions of the activated input. No convolution
    has a bias. 11 172 170 parameters for 10 classes.

    The batch norm behind the last block is the paper's; that of some implementations stands behind
    the first convolution instead (11 171 274 parameters), or is missing (11 171 146).

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
        require_settings("PreActResNet18", num_classes, generator)
        self.conv = conv3x3(3, 64, 1)
        self.stage1 = _stage(64, 64, stride=1)
        self.stage2 = _stage(64, 128, stride=2)
        self.stage3 = _stage(128, 256, stride=2)
        self.stage4 = _stage(256, 512, stride=2)
        self.norm = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, 3, H, W).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images("PreActResNet18", x, 3)
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.conv(x)))))
        x = F.relu(self.norm(x))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    changes = in_channels != channels
    return stage(in_channels, channels, stride, 2, nn.BatchNorm2d, F.relu, changes)
