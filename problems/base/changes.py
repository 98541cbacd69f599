"""Counts what changes programs, so that their steps are planned again.

A plan notes the count when it is made, and holds while the count stays. What changes a program
through this package calls :func:`note_change`; that a part is added to a planned network is told by
torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.modules import module as registration

_planned: WeakSet[nn.Module] = WeakSet()
_count = 0


def changes() -> int:
    """Return how many changes there have been."""
    return _count


def note_change() -> None:
    """Let all steps be planned again."""
    global _count  # noqa: PLW0603 (one count for the process, as one plan may hold several networks)
    _count += 1


def watch(networks: Iterable[nn.Module]) -> None:
    """Count what is added to the networks or to their parts from now on."""
    for network in networks:
        _planned.update(network.modules())


def _note_part(module: nn.Module, name: str, part: nn.Module | None) -> None:
    if module in _planned and module._modules.get(name) is not part:
        note_change()


def _note_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    if module not in _planned:
        return
    # Buffers may be replaced in every pass; what counts is where they are.
    known = module._buffers.get(name)
    if known is None or tensor is None:
        note_change()


def _note_parameter(module: nn.Module, name: str, parameter: Tensor | None) -> None:
    if module in _planned and module._parameters.get(name) is not parameter:
        note_change()


registration.register_module_module_registration_hook(_note_part)
registration.register_module_buffer_registration_hook(_note_tensor)
registration.register_module_parameter_registration_hook(_note_parameter)
