"""Classifiers of the experiments."""

from __future__ import annotations

from .digits_net import DigitsNet
from .resnet32 import ResNet32

__all__ = ["DigitsNet", "ResNet32"]
