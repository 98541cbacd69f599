"""Wide residual networks of 28 layers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaweight.problems.base.settings import require_count

from ._images import require_images
from ._initialise import kaiming_normal, require_settings
from ._pre_activation import conv3x3, stage

_BLOCKS_PER_STAGE = 4


class _WideResNet28(nn.Module):
    """WRN-28-k of Zagoruyko and Komodakis; see the classes below.

    Args:
        widening: k, the channels of the stages over 16, 32 and 64.
        activated_shortcuts: How many stages, from the first, have a first shortcut that starts from
            the activated input instead of the input itself.
    """

    def __init__(
        self,
        widening: int,
        activated_shortcuts: int,
        num_classes: int,
        in_channels: int,
        momentum: float,
        eps: float,
        slope: float,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self._name = f"WideResNet28x{widening}"
        require_settings(self._name, num_classes, generator)
        require_count(self._name, "in_channels", in_channels, least=1)
        self.slope = slope
        self.conv = conv3x3(in_channels, 16, 1)
        norm = partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
        activation = partial(F.leaky_relu, negative_slope=slope)
        first, second, third = (widening * channels for channels in (16, 32, 64))

        def built(number: int, in_channels: int, channels: int) -> nn.Sequential:
            activated, stride = number <= activated_shortcuts, 1 if number == 1 else 2
            sizes = (in_channels, channels, stride, _BLOCKS_PER_STAGE)
            return stage(*sizes, norm, activation, activated)

        self.stage1 = built(1, 16, first)
        self.stage2 = built(2, first, second)
        self.stage3 = built(3, second, third)
        self.norm = norm(third)
        self.linear = nn.Linear(third, num_classes)
        kaiming_normal(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, in_channels, H, W).

        Raises:
            DataError: For inputs of another shape.
        """
        require_images(self._name, x, self.conv.in_channels)
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        x = F.leaky_relu(self.norm(x), self.slope)
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class WideResNet28x2(_WideResNet28):
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
        super().__init__(2, 1, num_classes, in_channels, momentum, eps, slope, generator)


class WideResNet28x10(_WideResNet28):
    """WRN-28-10 of Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016).

    As :class:`WideResNet28x2` with 160, 320 and 640 channels, in the form of the paper: ReLU, and
    every shortcut that changes the shape starts from the activated input. No dropout. 36 479 194
    parameters for 10 classes. Shu et al., "Meta-Weight-Net" (NeurIPS 2019), learn from uniform
    label noise with it.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        momentum: Share of the new batch in the running statistics of every batch norm.
        eps: Added to the variance in every batch norm.
        slope: Slope of the ReLU below 0.
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
        slope: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(10, 3, num_classes, in_channels, momentum, eps, slope, generator)
