"""Other tensors in the place of a network's parameters and buffers, for one computation.

``torch.func.functional_call`` replaces tensors by their names. A module that has two names is then
replaced twice, and afterwards holds the replacement of the first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..base.errors import ConfigurationError


@contextmanager
def swapped(network: nn.Module, instead: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Replace tensors in every slot of a network that holds them, and restore the slots afterwards.

    Args:
        network: Modules that occur in it several times are treated once.
        instead: From parameters and buffers to what replaces them.

    Raises:
        ConfigurationError: When the network holds one of them nowhere.
    """
    slots: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for module in network.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and tensor in instead
    ]
    absent = set(instead) - {tensor for _, _, tensor in slots}
    if absent:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in absent)
        raise ConfigurationError(
            f"Tensors of shape {shapes} are to be replaced but are no parameters or buffers of "
            f"{type(network).__name__}; register them with the problem's module."
        )
    try:
        for tensors, name, tensor in slots:
            tensors[name] = instead[tensor]
        yield
    finally:
        for tensors, name, tensor in slots:
            tensors[name] = tensor
