"""An ill-conditioned quadratic with a closed-form best response.

``L = ½ wᵀAw - wᵀBθ`` and ``F = ½ |w - t|²``, so that ``w* = A⁻¹Bθ`` and
``dF/dθ = Bᵀ A⁻¹ (w* - t)``. The eigenvalues of ``A`` are spread evenly in the logarithm from 1e-4
to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Batch, Case

SIZE, LOG_CONDITION = 50, 4


def lower_loss(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """``½ wᵀAw - wᵀBθ``."""
    a, b = batch
    return 0.5 * (w @ (a @ w)) - w @ (b @ theta)


def upper_loss(w: Tensor, batch: Batch) -> Tensor:
    """``½ |w - t|²``."""
    (target,) = batch
    return 0.5 * ((w - target) ** 2).sum()


def make() -> Case:
    """Return the case; ``θ`` and ``t`` are chosen so that ``w*`` and ``v`` are of unit scale."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rotation, _ = torch.linalg.qr(normal(SIZE, SIZE))
    eigenvalues = torch.logspace(0, -LOG_CONDITION, SIZE, dtype=torch.float64)
    a = rotation @ torch.diag(eigenvalues) @ rotation.T
    a = (a + a.T) / 2
    b = normal(SIZE, SIZE) / SIZE**0.5
    solution, v = normal(SIZE), normal(SIZE)
    return Case(
        name="quadratic",
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        train=(a, b),
        judge=(solution - v,),
        theta=torch.linalg.solve(b, a @ solution),
        solution=solution,
        truth=b.T @ torch.linalg.solve(a, v),
        truth_by="the closed form Bᵀ A⁻¹ v",
        spectrum=eigenvalues.flip(0),
        steepest=1.0,
    )
