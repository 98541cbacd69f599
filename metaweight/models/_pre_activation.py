"""The residual block with batch norm and activation before its convolutions, and stages of it.

He et al., "Identity Mappings in Deep Residual Networks" (2016).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.BatchNorm2d]
Activation = Callable[[Tensor], Tensor]


class PreActivationBlock(nn.Module):
    """``conv(act(BN(conv(a)))) + shortcut(x)`` with ``a = act(BN(x))`` and 3 × 3 convolutions.

    The shortcut is the identity where the channels agree, else a 1 × 1 convolution. With
    ``activate_shortcut`` it starts from a instead of x.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: Norm,
        activation: Activation,
        activate_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activate_shortcut = activate_shortcut
        self.norm1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.norm2 = norm(channels)
        self.conv2 = conv3x3(channels, channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.norm1(x))
        inner = self.activation(self.norm2(self.conv1(active)))
        result: Tensor = self.conv2(inner) + self.shortcut(active if self.activate_shortcut else x)
        return result


def conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    """Return a convolution without a bias that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def stage(
    in_channels: int,
    channels: int,
    stride: int,
    blocks: int,
    norm: Norm,
    activation: Activation,
    activate_shortcut: bool = False,
) -> nn.Sequential:
    """Return blocks of which the first changes the shape, and has the activated shortcut if any."""
    first = PreActivationBlock(in_channels, channels, stride, norm, activation, activate_shortcut)
    others = (
        PreActivationBlock(channels, channels, 1, norm, activation) for _ in range(blocks - 1)
    )
    return nn.Sequential(first, *others)
