"""A small bilevel problem whose hypergradient is known.

``min_θ F(w*(θ))`` with ``w*(θ) = argmin_w L(w, θ)``, in float64 and with all parameters of a level
in one vector, so that a dense Hessian ``H`` of ``L`` can be formed. ``F`` depends on ``θ`` through
``w*`` alone, hence at the solution::

    dF/dθ = (dw*/dθ)ᵀ v = -(∂²L/∂θ∂w) H⁻¹ v,    v = ∂F/∂w
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]
LowerLoss = Callable[[Tensor, Tensor, Batch], Tensor]
UpperLoss = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Case:
    """A bilevel problem at one ``θ``, with its true hypergradient.

    Attributes:
        name: Name of the task.
        lower_loss: ``L(w, θ, batch)``.
        upper_loss: ``F(w, batch)``.
        train: The batch of ``L``.
        judge: The batch of ``F``.
        theta: ``θ``.
        solution: ``w*(θ)``.
        truth: ``dF/dθ``.
        truth_by: How it was computed.
        spectrum: Eigenvalues of ``H`` at the solution, ascending.
        steepest: An upper bound on the eigenvalues of ``H`` at any ``w``.
        sample_losses: ``l_i(w, batch)`` where ``L`` is their weighted mean and a penalty on ``w``.
        sample_weights: ``V_i(θ)`` of the weighted mean.
    """

    name: str
    lower_loss: LowerLoss
    upper_loss: UpperLoss
    train: Batch
    judge: Batch
    theta: Tensor
    solution: Tensor
    truth: Tensor
    truth_by: str
    spectrum: Tensor
    steepest: float
    sample_losses: Callable[[Tensor, Batch], Tensor] | None = None
    sample_weights: Callable[[Tensor], Tensor] | None = None

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue of ``H`` at the solution."""
        return float(self.spectrum[0])

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.spectrum[-1])

    @property
    def condition(self) -> float:
        """The condition number of ``H``."""
        return self.largest / self.smallest

    def to(self, dtype: torch.dtype) -> Case:
        """Return the case with its floating-point tensors in another precision."""

        def cast(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(cast(v) for v in value)
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating else value

        names = ("train", "judge", "theta", "solution", "truth")
        return replace(self, **{name: cast(getattr(self, name)) for name in names})

    def heavy_ball(self) -> dict[str, float]:
        """Return Polyak's learning rate and momentum, the best for quadratics with these bounds."""
        low, high = self.smallest**0.5, self.steepest**0.5
        return {"lr": 4 / (low + high) ** 2, "momentum": ((high - low) / (high + low)) ** 2}


def hessian(lower_loss: LowerLoss, w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """Return ``∂²L/∂w∂w``, dense."""
    found: Tensor = torch.autograd.functional.hessian(
        lambda at: lower_loss(at, theta, batch), w, vectorize=True
    )
    return found


def implicit_truth(case: Case) -> Case:
    """Return the case with the truth from a dense solve and the spectrum of its Hessian."""
    matrix = hessian(case.lower_loss, case.solution, case.theta, case.train)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    w = case.solution.clone().requires_grad_()
    theta = case.theta.clone().requires_grad_()
    (v,) = torch.autograd.grad(case.upper_loss(w, case.judge), w)
    x = torch.linalg.solve(matrix, v)
    (gradient,) = torch.autograd.grad(case.lower_loss(w, theta, case.train), w, create_graph=True)
    (mixed,) = torch.autograd.grad(gradient @ x, theta)
    return replace(case, truth=-mixed, spectrum=eigenvalues)


def newton(lower_loss: LowerLoss, w: Tensor, theta: Tensor, batch: Batch) -> Tensor:
    """Return the minimiser near ``w``, to a gradient of at most 1e-12.

    Raises:
        RuntimeError: When Newton's method does not converge.
    """
    size = float("inf")
    for _ in range(50):
        at = w.clone().requires_grad_()
        loss = lower_loss(at, theta, batch)
        (gradient,) = torch.autograd.grad(loss, at)
        size = float(gradient.norm())
        if size <= 1e-12:
            return w
        step = torch.linalg.solve(hessian(lower_loss, w, theta, batch), gradient)
        length = 1.0
        while length > 1e-3 and not lower_loss(w - length * step, theta, batch) <= loss:
            length /= 2
        w = w - length * step
    raise RuntimeError(f"Newton's method stopped at a gradient of length {size:.3g}.")


def accuracy(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the relative error and the cosine of a computed gradient.

    Raises:
        ArithmeticError: When the gradient is not finite.
    """
    found, truth = found.double(), truth.double()
    error = float((found - truth).norm() / truth.norm())
    cosine = float(found @ truth / (found.norm() * truth.norm()).clamp(min=1e-300))
    if not (math.isfinite(error) and math.isfinite(cosine)):
        raise ArithmeticError("the gradient is not finite")
    return {"error": error, "cosine": cosine}
