"""Slow, obvious hypergradients in float64, to judge the fast ones by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def mixed_product(
    loss: Callable[[], Tensor], weights: Sequence[Tensor], theta: Sequence[Tensor], v: list[Tensor]
) -> list[Tensor]:
    """``-(∂²L/∂θ∂w) v`` by double backward."""
    gradient = torch.autograd.grad(loss(), weights, create_graph=True)
    inner = sum((g * t).sum() for g, t in zip(gradient, v, strict=True))
    return [-g for g in torch.autograd.grad(inner, theta)]


def hessian_matrix(loss: Callable[[], Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The whole Hessian, row by row."""
    gradient = torch.autograd.grad(loss(), weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [
        torch.cat([r.reshape(-1) for r in torch.autograd.grad(flat[i], weights, retain_graph=True)])
        for i in range(flat.numel())
    ]
    return torch.stack(rows)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, e = flat(actual).double(), flat(expected).double()
    return float((a - e).norm() / e.norm())


def cosine(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, e = flat(actual).double(), flat(expected).double()
    return float(torch.dot(a, e) / (a.norm() * e.norm()))


def everything(module: nn.Module) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [t.detach().clone() for t in (*module.parameters(), *module.buffers())]
