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

Held = tuple[dict[str, Any], str, Tensor]
"""A slot that holds a tensor: the parameters or buffers of a module by name, and the name."""


class swapped:
    """Inside, other tensors stand in every slot of a network that holds certain tensors; afterwards
    the slots are as before.

    Args:
        network: Modules that occur in it several times are treated once.
        instead: From parameters and buffers to what replaces them.

    Raises:
        ConfigurationError: When the network holds one of the tensors nowhere.
    """

    __slots__ = ("_held", "_instead")

    def __init__(self, network: nn.Module, instead: Mapping[Tensor, Tensor]) -> None:
        self._instead = instead
        self._held = held = _holding(network, instead)
        there = {id(tensor) for _, _, tensor in held}
        if len(there) < len(instead):
            absent = [tensor for tensor in instead if id(tensor) not in there]
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in absent)
            raise ConfigurationError(
                f"Tensors of shape {shapes} are to be replaced but are no parameters or buffers of "
                f"{type(network).__name__}; register them with the problem's module."
            )

    def __enter__(self) -> None:
        try:
            for tensors, name, tensor in self._held:
                tensors[name] = self._instead[tensor]
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        for tensors, name, tensor in self._held:
            tensors[name] = tensor


def _holding(network: nn.Module, instead: Mapping[Tensor, Tensor]) -> list[Held]:
    """Return the slots that hold one of the tensors."""
    found: list[Held] = []
    seen: set[nn.Module] = set()
    # Looked for in every pass: the network's own generators take three times as long.
    left: list[nn.Module | None] = [network]
    while left:
        module = left.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        left += module._modules.values()
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor in instead:
                    found.append((tensors, name, tensor))
    return found


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
