"""Virtual adversarial training: the prediction should not change in its most sensitive direction.

``S_i = D(f(x_i + r_i), sg f(x_i))`` with ``r_i`` the perturbation of length ``ε`` that changes the
prediction most. To second order the change is ``½ dᵀ F d`` with the Fisher matrix of the inputs
``F = Jᵀ (diag p - p pᵀ) J`` and the Jacobian ``J`` of the logits, so that ``r`` is its leading
eigenvector, found by power iterations ``d ← unit(F d)`` from a random ``d``. The product is exact
here. The paper takes ``∇_d KL(p(x) ‖ p(x + ξ d))`` at a small ``ξ``, which in single precision is
rounding below ``ξ ≈ 0.01`` and no longer the tangent far above it.

Sources: Miyato et al., "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", IEEE TPAMI 2018 (arXiv:1704.03976); with entropy minimisation beside it
(``SemiSupervisedProblem(entropy_weight=...)``) it is the VAT+EntMin of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight.problems import ConfigurationError, DataError
from metaweight.problems.base.settings import is_count, is_positive
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from metaweight.problems.state.random_streams import RandomState

from .._label_loss import full_precision
from .divergences import Divergence, Probabilities, divergence_of
from .method import Consistency, ConsistencyMethod, ConsistencyStep, compared

Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VAT(ConsistencyMethod):
    """Divergence of the student's predictions with and without the worst small perturbation.

    All passes of a step are over the same view with the same dropout, and none touches a ``.grad``.

    Args:
        epsilon: ``ε``, the length of the perturbation, in the units of the (embedded) inputs: 1 for
            SVHN, 6 for CIFAR-10 in the protocol of Oliver et al. (2018).
        divergence: A name of :data:`~metaweight.consistency.DIVERGENCES` or a function; ``"kl"`` is
            the paper's ``KL(p(x) ‖ p(x + r))``, ``"reverse_kl"`` that of Oliver et al.
        powers: Power iterations.
        xi: Length of a finite difference in place of the exact product, for networks that cannot
            be differentiated twice; 0.1 is enough in single precision.

    Raises:
        ConfigurationError: For values out of range.
    """

    epsilon: float = 1.0
    divergence: str | Divergence = "kl"
    powers: int = 1
    xi: float | None = None

    def __post_init__(self) -> None:
        divergence_of("VAT", self.divergence)
        for name in ("epsilon", "xi"):
            value = getattr(self, name)
            if value is not None and not is_positive(value):
                raise ConfigurationError(
                    f"VAT({name}={value}) is not a length; give a positive, finite number."
                )
        if not is_count(self.powers, least=1):
            raise ConfigurationError(
                f"VAT(powers={self.powers}) leaves the direction random; give at least 1."
            )

    def __call__(self, step: ConsistencyStep) -> Consistency:
        """Return the divergences.

        Raises:
            DataError: For inputs that are not floating-point.
        """
        x = step.embed(step.augmented)
        if not x.is_floating_point():
            raise DataError(
                f"VAT perturbs its inputs, but they are {x.dtype}; give floating-point inputs, or "
                "say with Network(embed=..., classify=...) what to perturb, such as the embeddings "
                "of tokens."
            )
        streams = RandomState(x.device)

        def classify(inputs: Tensor) -> Tensor:
            streams.restore()
            return step.classify(inputs)

        start = torch.randn(x.shape, dtype=full_precision(x).dtype, device=x.device)
        direction, p = adversarial_direction(classify, x, start, self.powers, self.xi)
        student = classify(x + (self.epsilon * direction).to(x.dtype))
        values = divergence_of("VAT", self.divergence)(student, Probabilities(p, check=False))
        flat = (direction.flatten(1).abs().amax(1) == 0).to(p.dtype)
        return compared(values, student, p, metrics={"zero directions": flat.mean()})


def adversarial_direction(
    classify: Classify, x: Tensor, start: Tensor, powers: int = 1, xi: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the direction of each sample, and the probabilities there.

    Args:
        classify: Inputs (B, …) to logits (B, C); the same function of its argument every time.
        x: (B, …), floating point.
        start: The direction to begin with, like ``x``.
        powers: Power iterations.
        xi: Length of a finite difference; the product is exact when left out.

    Returns:
        Directions of length 1, or 0 where the prediction does not change, and probabilities
        (B, C), both without a graph.

    Raises:
        DataError: For a start of another shape.
    """
    if start.shape != x.shape:
        raise DataError(
            f"adversarial_direction received a start of shape {tuple(start.shape)} for inputs of "
            f"shape {tuple(x.shape)}; give one of the same shape."
        )
    device = x.device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False), differentiable_twice():
        at = x.detach().requires_grad_()
        logits = classify(at)
        p = logits.detach().softmax(-1)
        direction = unit(start)
        for _ in range(powers):
            along = direction.to(at.dtype)
            if xi is None:
                product = fisher_product(logits, at, p, along)
            else:
                product = _difference(classify, x, p, along, xi)
            direction = unit(product)
    return direction, p


def fisher_product(logits: Tensor, at: Tensor, p: Tensor, direction: Tensor) -> Tensor:
    """Return ``Jᵀ (diag p - p pᵀ) J d`` for each sample.

    Args:
        logits: (B, C), with a graph from ``at``.
        at: (B, …), requires a gradient.
        p: Probabilities (B, C).
        direction: ``d``, like ``at``.
    """
    # The tangent J d is the derivative of uᵀ J by u, for any u.
    u = torch.zeros_like(logits, requires_grad=True)
    (pulled,) = torch.autograd.grad(logits, at, u, create_graph=True, materialize_grads=True)
    if not pulled.requires_grad:
        return torch.zeros_like(at)
    (tangent,) = torch.autograd.grad(pulled, u, direction, materialize_grads=True)
    centred = p * (tangent - (p * tangent).sum(-1, keepdim=True))
    (product,) = torch.autograd.grad(logits, at, centred, retain_graph=True, materialize_grads=True)
    return product


def unit(direction: Tensor) -> Tensor:
    """Return each sample's direction at length 1 over all its dimensions, in full precision.

    A direction of exactly 0 stays 0.
    """
    flat = full_precision(direction).flatten(1)
    # Twice, since squares of the products of a confident network would underflow.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return F.normalize(flat, dim=1).view(direction.shape)


def _difference(classify: Classify, x: Tensor, p: Tensor, along: Tensor, xi: float) -> Tensor:
    shift = (xi * along).detach().requires_grad_()
    log_p = classify(x.detach() + shift).log_softmax(-1)
    (found,) = torch.autograd.grad(-(p * log_p).sum(), shift, materialize_grads=True)
    return found
