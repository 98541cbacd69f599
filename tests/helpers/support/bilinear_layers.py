"""Layers that are linear in their input and weight, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def drawn(*shapes: tuple[int, ...], device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [t.to(device).requires_grad_() for t in made]


def is_ours(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ == "_BilinearBackward"


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """In double precision; 1e-12 leaves room for sums taken in another order."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def conv() -> nn.Module:
    return nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)


def dense() -> nn.Module:
    return nn.Linear(4, 4, dtype=torch.float64)


def two_layers(layer: Callable[[], Any]) -> tuple[nn.Module, list[Tensor], Tensor]:
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(layer(), nn.Tanh(), layer())
    return net, [net[0].weight, net[2].weight], torch.randn(2, 1, 4, 4, dtype=torch.float64)
