"""Ridge regression with a penalty for each feature, chosen on held-out data.

``L = |Xw - y|² / 2n + ½ Σ_j exp(θ_j) w_j²`` and ``F = |X'w - y'|² / 2n'``. With
``H = XᵀX / n + diag(exp θ)`` the best response is ``w* = H⁻¹ Xᵀy / n`` and
``dF/dθ = -exp(θ) ⊙ w* ⊙ H⁻¹v``. Features differ in scale by up to ten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Batch, Case

FEATURES, SAMPLES = 30, 100
LOG_PENALTY = -5.0


def lower_loss(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """``|Xw - y|² / 2n + ½ Σ_j exp(θ_j) w_j²``."""
    return upper_loss(w, batch) + 0.5 * (theta.exp() * w**2).sum()


def upper_loss(w: Tensor, batch: Batch) -> Tensor:
    """``|X'w - y'|² / 2n'``."""
    x, y = batch
    return 0.5 * ((x @ w - y) ** 2).mean()


def make() -> Case:
    """Return the case."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(0, -1, FEATURES, dtype=torch.float64)
    x = torch.randn(2 * SAMPLES, FEATURES, generator=generator, dtype=torch.float64) * scales
    true = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(2 * SAMPLES, generator=generator, dtype=torch.float64)
    y = x @ true + 0.5 * noise
    train, judge = (x[:SAMPLES], y[:SAMPLES]), (x[SAMPLES:], y[SAMPLES:])
    theta = torch.full((FEATURES,), LOG_PENALTY, dtype=torch.float64)
    h = train[0].T @ train[0] / SAMPLES + torch.diag(theta.exp())
    solution = torch.linalg.solve(h, train[0].T @ train[1] / SAMPLES)
    v = judge[0].T @ (judge[0] @ solution - judge[1]) / SAMPLES
    eigenvalues = torch.linalg.eigvalsh(h)
    return Case(
        name="ridge",
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        train=train,
        judge=judge,
        theta=theta,
        solution=solution,
        truth=-theta.exp() * solution * torch.linalg.solve(h, v),
        truth_by="the closed form -exp(θ) ⊙ w* ⊙ H⁻¹v",
        spectrum=eigenvalues,
        steepest=float(eigenvalues[-1]),
    )
