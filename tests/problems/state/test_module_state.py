"""Entries that a module writes and does not read are let be, where they are as they are here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.state.module_state import load_module
from torch import nn


class Scaled(nn.Linear):
    """Writes a scale that it does not read, as layers of 4-bit weights do."""

    def __init__(self, scale: Any) -> None:
        super().__init__(2, 1)
        self.scale = scale

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.scale"] = self.scale


@pytest.mark.parametrize("scale", [torch.tensor([2.0]), "nf4"], ids=["a tensor", "text"])
def test_what_is_alike_needs_no_loading(scale: Any) -> None:
    one, other = nn.Sequential(Scaled(scale)), nn.Sequential(Scaled(scale))
    load_module(other, one.state_dict())
    assert torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("scale", "another"),
    [(torch.tensor([2.0]), torch.tensor([3.0])), (torch.tensor([2.0]), "2"), ("nf4", "fp4")],
)
def test_what_differs_is_refused_by_torch(scale: Any, another: Any) -> None:
    one, other = Scaled(scale), Scaled(another)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_module(other, one.state_dict())
