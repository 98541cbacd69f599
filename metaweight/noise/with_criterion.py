"""A network and its criterion as one module."""

from __future__ import annotations

from typing import Any

from torch import nn

from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import shown


class WithCriterion(nn.Module):
    """A network and the criterion it is trained with as one module; calling it calls the network.

    Args:
        network: Any module.
        criterion: A criterion whose buffers belong to the training state.
    """

    _called = "network"

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        for name, part in (("network", network), ("criterion", criterion)):
            if not isinstance(part, nn.Module):
                raise ConfigurationError(
                    f"WithCriterion received {name}={shown(part)}; give a torch.nn.Module."
                )
        self.network = network
        self.criterion = criterion

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the network."""
        return self.network(*args, **kwargs)
