"""Low-rank adapters on a frozen network, made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """``layer(x) + B A x``; ``A`` and ``B`` are trained, the layer is not."""

    def __init__(self, layer: nn.Module, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer
        dtype = next(layer.parameters()).dtype
        self.down = nn.Parameter(torch.randn(rank, inputs, dtype=dtype) / inputs**0.5)
        self.up = nn.Parameter(0.1 * torch.randn(outputs, rank, dtype=dtype))

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) + x @ self.down.T @ self.up.T


def adapted(model: nn.Module, *names: str) -> nn.Module:
    """Freeze a model, and put an adapter on each module whose name ends like one of these."""
    model.requires_grad_(False)
    for path, layer in list(model.named_modules()):
        if path.endswith(names):
            owner = model.get_submodule(path.rpartition(".")[0])
            # GPT-2 keeps matrices as (inputs, outputs), nn.Linear the other way round.
            shape = layer.weight.shape if hasattr(layer, "nf") else layer.weight.shape[::-1]
            setattr(owner, path.rpartition(".")[2], Adapted(layer, *shape))
    return model
