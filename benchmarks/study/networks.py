"""The networks, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from metaweight.models import (
    ConvNet6,
    DigitsNet,
    PreActResNet18,
    ResNet18,
    ResNet32,
    WideResNet28x10,
)

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "digits-net": DigitsNet,
    "quick": ConvNet6,
    "resnet32": ResNet32,
    "resnet18": ResNet18,
    "preact-resnet18": PreActResNet18,
    "wrn-28-10": WideResNet28x10,
}
"""``NETWORKS[name](num_classes, generator=generator)``; digits-net is for digits alone."""
