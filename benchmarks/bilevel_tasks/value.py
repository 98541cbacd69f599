"""The value function ``h(θ) = F(w*(θ), θ)`` of all samples, and its minimum.

The lower problem is solved by Newton's method, each step by conjugate gradients, to a gradient of
``TOLERANCE`` and then once more, all in units of ``stretch``. With ``H x = ∂F/∂w`` solved as
closely, ``∇h = ∂F/∂θ - (∂²G/∂θ∂w) x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize
from torch import Tensor

from .problems import Problem

TOLERANCE = 1e-11
EACH = 1e-4
"""By how much a step of Newton's method shortens the gradient of a quadratic."""
MOST_STEPS = 100


class Value:
    """``h`` of a problem. A solve of the lower problem starts where the last one ended.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._w = problem.w

    def __call__(self, theta: Tensor) -> float:
        """Return ``h(θ)``; infinity where it cannot be computed."""
        if not bool(torch.isfinite(theta).all()):
            return math.inf
        try:
            w = self.solution(theta)
        except ArithmeticError:
            return math.inf
        return float(self._problem.upper_loss(w, theta, self._problem.upper))

    def solution(self, theta: Tensor) -> Tensor:
        """Return ``w*(θ)``.

        Raises:
            ArithmeticError: When Newton's method does not converge.
        """
        w, size = self._w, math.inf
        for _ in range(MOST_STEPS):
            gradient, product = self._linearised(w, theta)
            size = float(gradient.norm())
            if not math.isfinite(size):
                break
            step = self._problem.stretch(theta) * solve(product, gradient, EACH * size)
            if size <= TOLERANCE:
                # A last step to rounding, since the error of h is that of w.
                self._w = w - step
                return self._w
            w = self._shortened(w, theta, step, size)
        self._w = self._problem.w
        raise ArithmeticError(f"Newton's method stopped at a gradient of length {size:.3g}.")

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ``∇h(θ)``."""
        w = self.solution(theta).clone().requires_grad_()
        at = theta.clone().requires_grad_()
        # Adding 0 connects losses that do not depend on θ.
        loss = self._problem.upper_loss(w, at, self._problem.upper) + 0 * at.sum()
        v, direct = torch.autograd.grad(loss, (w, at))
        loss = self._problem.lower_loss(w, at, self._problem.lower)
        (below,) = torch.autograd.grad(loss, w, create_graph=True)
        _, product = self._linearised(w.detach(), theta)
        unit = self._problem.stretch(theta)
        x = unit * solve(product, unit * v, 0.01 * TOLERANCE)
        (mixed,) = torch.autograd.grad(below @ x, at)
        return direct - mixed

    def minimum(self) -> float:
        """Return the least ``h`` that L-BFGS finds from the problem's start, within its bound."""
        start, bound = self._problem.theta.numpy(), self._problem.bound

        def both(theta: object) -> tuple[float, object]:
            at = torch.as_tensor(theta)
            return self(at), self.gradient(at).numpy()

        limits = None if math.isinf(bound) else [(-bound, bound)] * len(start)
        options = {"maxiter": 5000, "maxfun": 10000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 50}
        found = minimize(both, start, jac=True, method="L-BFGS-B", bounds=limits, options=options)
        return float(found.fun)

    def _linearised(self, w: Tensor, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return ``∇_w G`` and the product with its Hessian, in units of ``stretch``."""
        at, unit = w.clone().requires_grad_(), self._problem.stretch(theta)
        loss = self._problem.lower_loss(at, theta, self._problem.lower)
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(gradient, at, unit * vector, retain_graph=True)
            return unit * found

        return unit * gradient.detach(), product

    def _shortened(self, w: Tensor, theta: Tensor, step: Tensor, size: float) -> Tensor:
        """Return ``w - length step`` with the first halving that shortens the gradient."""
        length = 1.0
        while length > 1e-3:
            found = w - length * step
            if float(self._linearised(found, theta)[0].norm()) < size:
                return found
            length /= 2
        return w - length * step


def solve(product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float) -> Tensor:
    """Return ``A⁻¹ b`` by conjugate gradients, to a residual of ``tolerance`` or to rounding."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, squared = residual, float(residual @ residual)
    least = max(tolerance, 1e-15 * math.sqrt(squared))
    for _ in range(4 * len(right)):
        if math.sqrt(squared) <= least:
            break
        image = product(direction)
        length = squared / float(direction @ image)
        x, residual = x + length * direction, residual - length * image
        following = float(residual @ residual)
        direction, squared = residual + (following / squared) * direction, following
    return x
