"""A case on higher and on TorchOpt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .case import Case
from .programs import Gradient, Point


def higher_unroll(case: Case, steps: int) -> Gradient:
    """Return higher's derivative of heavy-ball steps from 0."""
    import higher

    module, theta = Point(torch.zeros_like(case.solution)), case.theta.clone().requires_grad_()
    optimizer = torch.optim.SGD(module.parameters(), **case.heavy_ball())

    def gradient() -> Tensor:
        with higher.innerloop_ctx(module, optimizer) as (fast, inner):
            for _ in range(steps):
                inner.step(case.lower_loss(fast(), theta, case.train))
            found: Tensor = torch.autograd.grad(case.upper_loss(fast(), case.judge), theta)[0]
        return found

    return gradient


def torchopt_unroll(case: Case, steps: int) -> Gradient:
    """Return TorchOpt's derivative of heavy-ball steps from 0."""
    import torchopt

    module, theta = Point(torch.zeros_like(case.solution)), case.theta.clone().requires_grad_()
    inner = torchopt.MetaSGD(module, **case.heavy_ball())
    start = torchopt.extract_state_dict(module, by="copy")
    optimizer_start = torchopt.extract_state_dict(inner, by="copy")

    def gradient() -> Tensor:
        torchopt.recover_state_dict(module, start)
        torchopt.recover_state_dict(inner, optimizer_start)
        for _ in range(steps):
            inner.step(case.lower_loss(module(), theta, case.train))
        found: Tensor = torch.autograd.grad(case.upper_loss(module(), case.judge), theta)[0]
        return found

    return gradient


def torchopt_implicit(case: Case, solver: Any) -> Gradient:
    """Return TorchOpt's implicit derivative at the solution.

    Args:
        case: The problem.
        solver: One of ``torchopt.linear_solve``, with its settings.
    """
    from torchopt.diff.implicit import custom_root

    theta = case.theta.clone().requires_grad_()

    def stationary(w: Tensor, theta: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda at: case.lower_loss(at, theta, case.train))(w)
        return found

    @custom_root(stationary, argnums=1, solve=solver)  # type: ignore[untyped-decorator]
    def solve(w: Tensor, theta: Tensor) -> Tensor:
        del theta
        return w

    def gradient() -> Tensor:
        loss = case.upper_loss(solve(case.solution, theta), case.judge)
        found: Tensor = torch.autograd.grad(loss, theta)[0]
        return found

    return gradient
