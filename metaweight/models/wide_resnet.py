"""The wide residual network that semi-supervised methods are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaweight.problems.base.settings import require_count

from ._images import require_images
from ._initialise import kaiming_normal, require_settings

_BLOCKS_PER_STAGE = 4
_Norm = Callable[[int], nn.BatchNorm2d]


class _Block(nn.Module):
    """``conv(act(BN(conv(a)))) + shortcut(x)`` with ``a = act(BN(x))`` and 3 × 3 convolutions.

    The shortcut is the identity where the channels agree, else a 1 × 1 convolution. With
    ``activate_shortcut`` it starts from a instead of x.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: _Norm,
        slope: float,
        activate_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.activate_shortcut = activate_shortcut
        self.norm1 = norm(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm2 = norm(channels)
        self.conv2 = _conv3x3(channels, channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.leaky_relu(self.norm1(x), self.slope)
        inner = F.leaky_relu(self.norm2(self.conv1(active)), self.slope)
        result: Tensor = self.conv2(inner) + self.shortcut(active if self.activate_shortcut else x)
        return result


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _stage(
    in_channels: int,
    channels: int,
    stride: int,
    norm: _Norm,
    slope: float,
    activate_shortcut: bool = False,
) -> nn.Sequential:
    blocks = [_Block(in_channels, channels, stride, norm, slope, activate_shortcut)]
    blocks += [_Block(channels, channels, 1, norm, slope) for _ in range(_BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(*blocks)


class WideResNet28x2(nn.Module):
    """WRN-28-2 of Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016).

    In the form that Oliver et al. compare semi-supervised methods with, "Realistic Evaluation of
    Deep Semi-Supervised Learning Algorithms" (NeurIPS 2018): one 3 × 3 convolution with 16
    channels, three stages of four pre-activation blocks with 32, 64 and 128 channels and strides
    1, 2 and 2, batch norm, leaky ReLU, global average pooling and a linear layer. No convolution
    has a bias. 1 467 610 parameters for 10 classes.

    As in their code, the shortcut of the very first block starts from the activated input, and
    those of all later blocks, also where the channels change, from the input itself. In contrast
    to their TensorFlow code, convolutions of stride 2 pad every side by one pixel (there only
    right and below), and all initial weights have the fan-in variance (there fan-out for
    convolutions and Glorot's for the linear layer).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        momentum: Share of the new batch in the running statistics of every batch norm; their code
            has 0.001.
        eps: Added to the variance in every batch norm; their code has 1e-3.
        slope: Slope of the leaky ReLU below 0.
        generator: Source of the initial weights, N(0, 2 / fan_in), on the device they are made on;
            ``None`` uses torch's global generator, as ``torch.nn`` layers do.

    Shapes:
        Images (B, in_channels, H, W), 32 × 32 in the paper, to logits (B, num_classes).

    Raises:
        ConfigurationError: For settings out of range or of another type.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        momentum: float = 0.1,
        eps: float = 1e-5,
        slope: float = 0.1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_settings("WideResNet28x2", num_classes, generator)
        require_count("WideResNet28x2", "in_channels", in_channels, least=1)

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)

        self.slope = slope
        self.conv = _conv3x3(in_channels, 16, 1)
        self.stage1 = _stage(16, 32, 1, norm, slope, activate_shortcut=True)
        self.stage2 = _stage(32, 64, 2, norm, slope)
        self.stage3 = _stage(64, 128, 2, norm, slope)
        self.norm = norm(128)
        self.linear = nn.Linear(128, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, in_channels, H, W).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images("WideResNet28x2", x, self.conv.in_channels)
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        x = F.leaky_relu(self.norm(x), self.slope)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
