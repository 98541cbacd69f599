"""Power iterations of spectral norms, which passes in training mode advance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from .buffers import BufferSlot

_Parametrized: type[nn.Module] = parametrizations._SpectralNorm


@contextmanager
def held_power_iterations(
    slots: Sequence[BufferSlot], modules: Iterable[nn.Module]
) -> Iterator[None]:
    """Advance the power iterations once, and hold their vectors inside a ``with`` statement.

    The gradient of a spectral norm takes the vectors as constants. Passes whose difference is to
    be its derivative must take the same ones: those that a pass at the present parameters takes.

    Args:
        slots: Where the buffers of ``modules`` live; they are not restored here.
        modules: The networks.
    """
    switched: list[nn.Module] = []
    if any(name.endswith("_u") for _, name in slots):
        with torch.no_grad():
            for network in modules:
                for module in network.modules():
                    for advance, owner in _iterations(module):
                        advance()
                        switched.append(owner)
    # A module in evaluation mode takes the vectors as they are.
    for owner in switched:
        owner.training = False
    try:
        yield
    finally:
        for owner in switched:
            owner.training = True


def _iterations(module: nn.Module) -> Iterator[tuple[Callable[[], object], nn.Module]]:
    """Yield what advances each power iteration in training of a module, and what holds its mode."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and module.training:
            yield lambda hook=hook: hook(module, None), module  # type: ignore[misc]
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        for name, chain in parametrized.items():
            for owner in chain:
                if isinstance(owner, _Parametrized) and owner.training:
                    yield lambda name=name: getattr(module, name), owner  # type: ignore[misc]
