"""Other tensors in the place of a network's parameters and buffers, for one computation.

``torch.func.functional_call`` replaces tensors by their names. A module that has two names is then
replaced twice, and afterwards holds the replacement of the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad

from ..base.errors import ConfigurationError
from .buffers import buffer_slots

Slot = tuple[dict[str, Any], str]
"""A place for a parameter or a buffer: those of a module by name, and its name."""


def tensor_slots(network: nn.Module) -> list[Slot]:
    """Return all places for parameters and buffers in a network, of modules that occur several
    times once."""
    return [
        (tensors, name)
        for module in network.modules()
        for tensors in (module._parameters, module._buffers)
        for name, _ in tensors.items()
    ]


class swapped:
    """Inside, other tensors stand in every slot of a network that holds certain tensors; afterwards
    the slots are as before.

    Args:
        network: Modules that occur in it several times are treated once.
        instead: From parameters and buffers to what replaces them.
        slots: Where to look first, such as :func:`tensor_slots` of the network found earlier.

    Raises:
        ConfigurationError: When the network holds one of the tensors nowhere.
    """

    __slots__ = ("_found", "_instead")

    def __init__(
        self,
        network: nn.Module,
        instead: Mapping[Tensor, Tensor],
        slots: Sequence[Slot] | None = None,
    ) -> None:
        self._instead = instead
        self._found = _holding(instead, tensor_slots(network) if slots is None else slots)
        if slots is not None and _absent(instead, self._found):
            self._found = _holding(instead, tensor_slots(network))
        absent = _absent(instead, self._found)
        if absent:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in absent)
            raise ConfigurationError(
                f"Tensors of shape {shapes} are to be replaced but are no parameters or buffers of "
                f"{type(network).__name__}; register them with the problem's module."
            )

    def __enter__(self) -> None:
        for tensors, name, tensor in self._found:
            tensors[name] = self._instead[tensor]

    def __exit__(self, *exception: object) -> None:
        for tensors, name, tensor in self._found:
            tensors[name] = tensor


Held = tuple[dict[str, Any], str, Tensor]


def _holding(instead: Mapping[Tensor, Tensor], slots: Iterable[Slot]) -> list[Held]:
    """Return the slots that hold one of the tensors, and the tensor."""
    return [
        (tensors, name, tensor)
        for tensors, name in slots
        if name in tensors and (tensor := tensors[name]) is not None and tensor in instead
    ]


def _absent(instead: Mapping[Tensor, Tensor], held: Sequence[Held]) -> list[Tensor]:
    """Return the tensors that no slot holds."""
    there = {id(tensor) for _, _, tensor in held}
    return [] if len(there) == len(instead) else [t for t in instead if id(t) not in there]


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
