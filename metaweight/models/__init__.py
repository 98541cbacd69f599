"""Image classifiers for the experiments."""

from __future__ import annotations

from .digits_net import DigitsNet
from .resnet18 import ResNet18
from .resnet32 import ResNet32
from .wide_resnet import WideResNet28x2

__all__ = ["DigitsNet", "ResNet18", "ResNet32", "WideResNet28x2"]
