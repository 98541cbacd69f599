"""Fingerprints of tensors that no step changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.persistence import frozen
from metaweight.problems.persistence.frozen import fingerprints, frozen_tensors
from support.devices import DEVICES
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.complex64)


def one(tensor: Tensor) -> int:
    return fingerprints({"x": tensor})["x"]


def by_hand(tensor: Tensor, piece: int) -> int:
    """In Python's own integers."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    raw += [0] * (-len(raw) % 8)
    values = [int.from_bytes(bytes(raw[i : i + 8]), "little") for i in range(0, len(raw), 8)]

    def weight(i: int) -> int:
        mixed = _signed((i + 1) * 0x5851F42D4C957F2D)
        return ((mixed ^ (mixed >> 29)) * 0x14057B7EF767814F) | 1

    while len(values) != 1:
        pieces = [values[i : i + piece] for i in range(0, len(values), piece)] or [[]]
        values = [sum(weight(i) * v for i, v in enumerate(p)) for p in pieces]
    return _signed(values[0])


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (130,)], ids=str)
def test_they_are_the_sums_of_their_definition(
    dtype: torch.dtype, shape: tuple[int, ...], device: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(frozen, "PIECE", 4)
    tensor = (100 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert one(tensor.to(device)) == by_hand(tensor, 4)


def test_they_depend_on_values_alone() -> None:
    x = torch.arange(60.0).view(6, 10)
    assert one(x.T.contiguous().T) == one(x)
    assert one(torch.cat([torch.zeros(1), x.view(-1)])[1:].view(6, 10)) == one(x)
    assert one(nn.Parameter(x)) == one(x)


def test_every_change_of_one_entry_is_seen(monkeypatch: Any) -> None:
    monkeypatch.setattr(frozen, "PIECE", 4)
    x = torch.arange(41, dtype=torch.float16)
    seen = {one(x)}
    for place in range(len(x)):
        for value in (-1.0, 1e-7, 3e4):
            changed = x.clone()
            changed[place] = value
            seen.add(one(changed))
    assert len(seen) == 1 + 3 * len(x)
    assert one(x.flip(0)) not in seen
    assert one(x[[1, 0, *range(2, 41)]]) not in seen


class Rotary(nn.Module):
    """A buffer that the state holds, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.ones(2))
        self.register_buffer("made", torch.ones(2), persistent=False)
        self.trained = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.same = self.frozen


def test_what_is_frozen_has_all_its_names() -> None:
    assert sorted(frozen_tensors(Rotary())) == ["frozen", "held", "same"]


def test_what_a_state_holds_in_another_form_is_not_left_out() -> None:
    net = Rotary()
    net.register_state_dict_post_hook(
        lambda module, state, prefix, metadata: state.update(frozen=state["frozen"] + 1)
    )
    assert sorted(frozen_tensors(net)) == ["held", "same"]
