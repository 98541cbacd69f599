"""Weight initialisation common to all models."""

from __future__ import annotations

import torch
from torch import nn

from metaweight._generator import checked_generator
from metaweight.problems.base.settings import require_count


def require_settings(network: str, num_classes: object, generator: object) -> None:
    """Refuse settings before any weight is drawn.

    Raises:
        ConfigurationError: Naming the network.
    """
    require_count(network, "num_classes", num_classes, least=1)
    if generator is not None:
        checked_generator(network, generator)


def kaiming_normal(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw convolution and linear weights from N(0, 2 / fan_in) and set linear biases to zero.

    He et al., "Delving Deep into Rectifiers" (2015), with the fan-in variance.

    Args:
        model: Module to initialise in place.
        generator: Source of the draws; ``None`` uses torch's global generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
