"""Classifiers of the experiments."""

from __future__ import annotations

from .digits_net import DigitsNet
from .resnet18 import ResNet18
from .resnet32 import ResNet32

__all__ = ["DigitsNet", "ResNet18", "ResNet32"]
