"""Data hyper-cleaning: a weight for each training digit, 40 % of whose labels are noise.

``L = mean_i sigmoid(θ_i) l_i(w) + ½ λ |w|²`` with ``l_i`` the cross-entropy of a linear softmax
model on scikit-learn's digits, ``F`` the cross-entropy on clean ones (the task of Franceschi et
al., ICML 2017). The weights do not depend on the losses here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .case import Batch, Case, implicit_truth, newton

CLASSES, NOISE, L2 = 10, 0.4, 1e-3
TRAIN, JUDGE = 500, 200


def sample_losses(w: Tensor, batch: Batch) -> Tensor:
    """``l_i``: the cross-entropy of each sample."""
    x, y = batch
    return F.cross_entropy(x @ w.view(-1, CLASSES), y, reduction="none")


def sample_weights(theta: Tensor) -> Tensor:
    """``sigmoid(θ_i)``."""
    return theta.sigmoid()


def lower_loss(w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """The weighted cross-entropy and a small penalty."""
    return (sample_weights(theta) * sample_losses(w, batch)).mean() + 0.5 * L2 * (w**2).sum()


def upper_loss(w: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy."""
    return sample_losses(w, batch).mean()


def make() -> Case:
    """Return the case, at equal weights of 0.5."""
    # Processes that load a saved case do without scikit-learn, which takes seconds to import.
    from metaweight.data import load_digits
    from metaweight.noise import inject_label_noise

    data, _ = load_digits(test_size=1797 - TRAIN - JUDGE)
    x = data.inputs.flatten(1).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    generator = torch.Generator().manual_seed(3)
    noisy = inject_label_noise(
        data.labels[:TRAIN], NOISE, num_classes=CLASSES, generator=generator
    ).noisy
    train = (x[:TRAIN], noisy)
    theta = torch.zeros(TRAIN, dtype=torch.float64)
    start = torch.zeros(x.shape[1] * CLASSES, dtype=torch.float64)
    # The Hessian of the cross-entropy by its logits is at most 1/2 (Böhning, 1992).
    weighted = x[:TRAIN] * sample_weights(theta).unsqueeze(1)
    steepest = torch.linalg.eigvalsh(x[:TRAIN].T @ weighted / (2 * TRAIN))[-1] + L2
    case = Case(
        name="cleaning",
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        train=train,
        judge=(x[TRAIN:], data.labels[TRAIN:]),
        theta=theta,
        solution=newton(lower_loss, start, theta, train),
        truth=torch.zeros_like(theta),
        truth_by="implicit differentiation with the dense Hessian in float64, |∇L| <= 1e-12",
        spectrum=torch.empty(0),
        steepest=float(steepest),
        sample_losses=sample_losses,
        sample_weights=sample_weights,
    )
    return implicit_truth(case)
