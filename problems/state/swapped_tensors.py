"""Other tensors in the place of a network's parameters and buffers, for one computation.

``torch.func.functional_call`` replaces tensors by their names. A module that has two names is then
replaced twice, and afterwards holds the replacement of the first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad

from ..base.errors import ConfigurationError
from .buffers import buffer_slots


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


@contextmanager
def swapped_with_buffers(network: nn.Module, instead: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Replace parameters by other tensors, and buffers by copies, which may take dual numbers.

    Their values are kept: the next micro-batch goes on from them, as in training.
    """
    slots = buffer_slots(network)
    before = [owner._buffers[name] for owner, name in slots]
    copies = {buffer: buffer.clone() for buffer in before if buffer is not None}
    with swapped(network, {**copies, **instead}):
        yield
        after = [owner._buffers[name] for owner, name in slots]
    for buffer, value in zip(before, after, strict=True):
        if buffer is None or value is None or (value is copies[buffer] and not value._version):
            continue
        primal: Tensor = forward_ad.unpack_dual(value).primal  # type: ignore[no-untyped-call]
        # Unnoticed by autograd; the evaluation around it restores all buffers.
        buffer.data.copy_(primal.detach())
