"""The estimators' weight network, made of torch's modules."""

from __future__ import annotations

import torch
from torch import nn


class Exponential(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def weigher_by_hand(output: str = "exponential") -> nn.Sequential:
    """Return a network of losses, drawn from the global stream; exponential ones are 1 at first."""
    first, last = nn.Linear(1, 100), nn.Linear(100, 1)
    end: nn.Module = nn.Sigmoid()
    if output == "exponential":
        end = Exponential()
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    layers = (nn.Unflatten(0, (-1, 1)), first, nn.ReLU(), last, end, nn.Flatten(0))
    return nn.Sequential(*layers).double()
