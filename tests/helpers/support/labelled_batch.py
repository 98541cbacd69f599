"""The batch that tools which read labels are compared on, and a user's loss of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, B, FEATURES = 3, 12, 6


X = torch.randn(B, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


Y = torch.arange(B) % C


# Samples that have no label, in two ways, and those that have one.
MISSING = torch.tensor([0, 3, 4, 10])


KEPT = torch.tensor([i for i in range(B) if i not in MISSING])


D = torch.tensor(0.3, dtype=torch.float64)


SHARES = torch.linspace(0, 1, B, dtype=torch.float64)


def per_sample(z: Tensor, y: Tensor) -> Tensor:
    """A user's loss without any of torch's settings."""
    return -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)


class PerSample(nn.Module):
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return per_sample(z, y)


HOT = F.one_hot(Y, C)


def close(found: Any, right: Any, **tolerance: float) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(right), **tolerance)
