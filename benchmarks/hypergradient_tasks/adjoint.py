"""The unrolled hypergradient in float64, by an adjoint written out for SGD with momentum.

With ``b_t = μ b_{t-1} + g_t + δ w_{t-1}`` and ``w_t = w_{t-1} - η b_t``, from ``λ_k = ∂F/∂w_k`` and
``ν_k = 0`` back::

    β_t     = ν_t - η λ_t
    λ_{t-1} = λ_t + δ β_t + ∂²L_t/∂w∂w β_t,    ν_{t-1} = μ β_t
    dF/dθ  += ∂²L_t/∂θ∂w β_t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from .unrolled import MOMENTUM, WEIGHT_DECAY, Batch, Workload, flat, judged_loss, weighted_loss


@dataclass
class Loop:
    """The state of the backward recursion over a number of steps.

    Attributes:
        w: ``λ``.
        momentum: ``ν``.
        found: ``dF/dθ`` so far.
    """

    w: list[Tensor]
    momentum: list[Tensor]
    found: list[Tensor]

    def go_back(
        self, gradient: Sequence[Tensor], w: Sequence[Tensor], theta: Sequence[Tensor], lr: float
    ) -> None:
        """Go back over a step whose gradient, with its graph, was computed at ``w``."""
        beta = [n - lr * a for n, a in zip(self.momentum, self.w, strict=True)]
        products = torch.autograd.grad(gradient, [*w, *theta], beta, retain_graph=True)
        hessian, mixed = products[: len(w)], products[len(w) :]
        self.w = [a + WEIGHT_DECAY * b + h for a, b, h in zip(self.w, beta, hessian, strict=True)]
        self.momentum = [MOMENTUM * b for b in beta]
        self.found = [t + m for t, m in zip(self.found, mixed, strict=True)]


def truths(work: Workload, counts: Sequence[int]) -> dict[int, Tensor]:
    """Return the hypergradient after each of the numbers of steps, one of them ``work.steps``.

    The graph of a step's gradient is built once for all numbers of steps that include it.
    """
    with work.kernels():
        return _truths(work, counts)


def _truths(work: Workload, counts: Sequence[int]) -> dict[int, Tensor]:
    net, weights = (module.double() for module in work.networks())
    *train, judge = [
        (x.double() if x.is_floating_point() else x, y) for x, y in (*work.batches, work.judge)
    ]
    theta = list(weights.parameters())
    names = [name for name, _ in net.named_parameters()]

    def predict(w: Sequence[Tensor], inputs: Tensor) -> Tensor:
        found: Tensor = functional_call(net, dict(zip(names, w, strict=True)), (inputs,))
        return found

    def lower_gradient(w: Sequence[Tensor], batch: Batch, graph: bool) -> tuple[Tensor, ...]:
        loss = weighted_loss(lambda inputs: predict(w, inputs), weights, batch)
        return torch.autograd.grad(loss, w, create_graph=graph)

    path = [[p.detach().clone().requires_grad_() for p in net.parameters()]]
    momentum = [torch.zeros_like(p) for p in path[0]]
    for batch in train:
        gradient = lower_gradient(path[-1], batch, graph=False)
        with torch.no_grad():
            momentum = [
                MOMENTUM * b + g + WEIGHT_DECAY * p
                for b, g, p in zip(momentum, gradient, path[-1], strict=True)
            ]
            after = [p - work.lr * b for p, b in zip(path[-1], momentum, strict=True)]
        path.append([p.requires_grad_() for p in after])
    loops: dict[int, Loop] = {}
    for step in range(len(train), 0, -1):
        if step in counts:
            end = path[step]
            loss = judged_loss(lambda inputs, end=end: predict(end, inputs), judge)  # type: ignore[misc]
            loops[step] = Loop(
                list(torch.autograd.grad(loss, end)),
                [torch.zeros_like(p) for p in end],
                [torch.zeros_like(t) for t in theta],
            )
        w = path[step - 1]
        gradient = lower_gradient(w, train[step - 1], graph=True)
        for loop in loops.values():
            loop.go_back(gradient, w, theta, work.lr)
    return {k: flat(loop.found) for k, loop in loops.items()}
