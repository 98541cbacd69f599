"""The state of a module, with entries that it writes and does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def load_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state of a module of the same entries.

    A layer may write entries that it cannot load, such as the scales of weights in 4 bits
    (bitsandbytes' ``Linear4bit``). There is nothing to load where they are as they are here.

    Raises:
        RuntimeError: When an entry cannot be loaded, and differs.
    """
    here = module.state_dict()
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    others = [name for name in state if name not in known]
    alike = all(name in here and _same(state[name], here[name]) for name in others)
    module.load_state_dict(state, strict=not (others and alike))


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and torch.equal(left.to(right.device), right)
    return type(left) is type(right) and bool(left == right)
