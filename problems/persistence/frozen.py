"""Tensors of a module that no step changes: told apart by fingerprints, so as not to be saved.

The fingerprint of a tensor with the bytes ``x``, read as 64-bit integers, is ``Σ_i w_i x_i`` modulo
``2^64``, with pseudo-random odd ``w_i``; of a long tensor, that of the fingerprints of its pieces.
It is the same on every device. A change of one integer changes it in any case, since odd numbers
can be inverted, and any other change but for a chance of about ``2^-64``. It finds what differs by
mistake, not what is made to look alike on purpose.

Source of the form: Carter, Wegman, "Universal classes of hash functions", JCSS 1979.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import CheckpointError
from ..base.shards import is_sharded

PIECE = 1 << 18
"""Integers of one piece; with their weights they fit the cache of a core."""


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return, of the tensors in the state of a module, its buffers and what requires no gradient.

    Those are left out that the state does not hold as they are, and sharded ones.
    """
    held = module.state_dict()
    given = dict(module.named_buffers(remove_duplicate=False))
    named = module.named_parameters(remove_duplicate=False)
    given |= {name: p for name, p in named if not p.requires_grad}
    return {name: t.detach() for name, t in given.items() if _holds(held.get(name), t)}


@torch.no_grad()
def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the fingerprint of each tensor; waits once for each device."""
    weights: dict[torch.device, Tensor] = {}
    found: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place = tensor.device
        if place not in weights:
            weights[place] = _weights(place)
        found.setdefault(place, {})[name] = _fingerprint(tensor, weights[place])
    return {
        name: value
        for digests in found.values()
        for name, value in zip(digests, torch.stack([*digests.values()]).tolist(), strict=True)
    }


def without_frozen(state: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the state of a problem without these tensors of its module."""
    module = state.get("module")
    if not names or not isinstance(module, Mapping):
        return dict(state)
    return {**state, "module": _like(module, {k: v for k, v in module.items() if k not in names})}


def with_frozen(
    state: Mapping[str, Any], names: Collection[str], module: nn.Module
) -> Mapping[str, Any]:
    """Return the state of a problem with these tensors as the module has them."""
    saved = state.get("module")
    if not names or not isinstance(saved, Mapping):
        return state
    present = module.state_dict()
    return {**state, "module": _like(saved, {**saved, **{n: present[n] for n in names}})}


def require_same_frozen(what: str, module: nn.Module, saved: Mapping[str, int]) -> None:
    """Refuse a module in which what was left out of a checkpoint is not what it was there.

    Raises:
        CheckpointError: Naming the first tensor that differs.
    """
    if not saved:
        return
    held = module.state_dict()
    here = fingerprints({n: held[n] for n in saved if _is_plain(held.get(n))})
    other = [name for name in saved if here.get(name) != saved[name]]
    if other:
        more = f" and {len(other) - 1} more of {len(saved)}" if len(other) > 1 else ""
        raise CheckpointError(
            "The checkpoint was saved with EngineConfig(adapters_only=True), without what no step "
            f"had changed, and in the module of {what} {other[0]!r}{more} have other values here "
            "than there; build it from the same pretrained parameters before it is resumed."
        )


def _fingerprint(tensor: Tensor, weights: Tensor) -> Tensor:
    bits, room = _integers(tensor), torch.empty_like(weights)
    while len(bits) != 1:
        pieces = [_sum(p, weights, room) for p in torch.split(bits, PIECE)]
        bits = torch.stack(pieces) if pieces else bits.new_zeros(1)
    return bits[0]


def _sum(piece: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    # Memory that is allocated anew for each piece would take most of the time.
    number = len(piece)
    return torch.mul(piece, weights[:number], out=room[:number]).sum()


def _integers(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, in the order of its entries, as 64-bit integers."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    short = -len(flat) % 8
    if short:
        flat = torch.nn.functional.pad(flat, (0, short))
    elif flat.storage_offset() % 8:
        flat = flat.clone()
    return flat.view(torch.int64)


def _weights(device: torch.device) -> Tensor:
    mixed = torch.arange(1, PIECE + 1, device=device) * 0x5851F42D4C957F2D
    return ((mixed ^ (mixed >> 29)) * 0x14057B7EF767814F) | 1


def _holds(value: object, tensor: Tensor) -> bool:
    return (
        _is_plain(value)
        and isinstance(value, Tensor)
        and (value.shape, value.dtype) == (tensor.shape, tensor.dtype)
        and value.data_ptr() == tensor.data_ptr()
    )


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and not is_sharded(value)
    )


def _like(given: Mapping[str, Any], entries: dict[str, Any]) -> Mapping[str, Any]:
    """Return entries as a mapping of the same kind, with torch's metadata of versions."""
    kind: Any = type(given)
    made = kind(entries)
    if hasattr(given, "_metadata"):
        made._metadata = given._metadata
    return made  # type: ignore[no-any-return]
