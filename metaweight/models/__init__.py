"""Image classifiers for the experiments."""

from __future__ import annotations

from .conv_net6 import ConvNet6
from .digits_net import DigitsNet
from .preact_resnet18 import PreActResNet18
from .resnet18 import ResNet18
from .resnet32 import ResNet32
from .wide_resnet import WideResNet28x2, WideResNet28x10

__all__ = [
    "ConvNet6",
    "DigitsNet",
    "PreActResNet18",
    "ResNet18",
    "ResNet32",
    "WideResNet28x2",
    "WideResNet28x10",
]
