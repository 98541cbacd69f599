"""Logistic regression with a penalty for each feature, chosen on held-out data.

``L`` is the mean cross-entropy of ``sigmoid(Xw)`` plus ``½ Σ_j exp(θ_j) w_j²``, ``F`` the
cross-entropy on other samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .case import Batch, Case, implicit_truth, newton

FEATURES, SAMPLES = 100, 500
LOG_PENALTY = -6.0


def lower_loss(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy and a penalty for each feature."""
    return upper_loss(w, batch) + 0.5 * (theta.exp() * w**2).sum()


def upper_loss(w: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy."""
    x, y = batch
    return F.binary_cross_entropy_with_logits(x @ w, y)


def make() -> Case:
    """Return the case."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    true = torch.randn(FEATURES, generator=generator, dtype=torch.float64) / 5
    noise = torch.randn(2 * SAMPLES, generator=generator, dtype=torch.float64)
    y = (x @ true + noise > 0).double()
    train = (x[:SAMPLES], y[:SAMPLES])
    theta = torch.full((FEATURES,), LOG_PENALTY, dtype=torch.float64)
    # The second derivative of the cross-entropy by its logit is at most 1/4.
    steepest = torch.linalg.eigvalsh(train[0].T @ train[0] / (4 * SAMPLES))[-1] + theta.exp().max()
    case = Case(
        name="logistic",
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        train=train,
        judge=(x[SAMPLES:], y[SAMPLES:]),
        theta=theta,
        solution=newton(lower_loss, torch.zeros_like(true), theta, train),
        truth=torch.zeros_like(theta),
        truth_by="implicit differentiation with the dense Hessian in float64, |∇L| <= 1e-12",
        spectrum=torch.empty(0),
        steepest=float(steepest),
    )
    return implicit_truth(case)
