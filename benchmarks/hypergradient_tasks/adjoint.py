"""The unrolled hypergradient in float64, by an adjoint written out for SGD with momentum.

With ``b_t = μ b_{t-1} + g_t + δ w_{t-1}`` and ``w_t = w_{t-1} - η b_t``, from ``λ_k = ∂F/∂w_k`` and
``ν_k = 0`` back::

    β_t     = ν_t - η λ_t
    λ_{t-1} = λ_t + δ β_t + ∂²L_t/∂w∂w β_t,    ν_{t-1} = μ β_t
    dF/dθ  += ∂²L_t/∂θ∂w β_t
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .unrolled import MOMENTUM, WEIGHT_DECAY, Workload, flat, judged_loss, weighted_loss


def truths(work: Workload, counts: Sequence[int]) -> dict[int, Tensor]:
    """Return the hypergradient after each of the numbers of steps, one of them ``work.steps``.

    The graph of a step's gradient is made once for all loops that reach it.
    """
    net, weights = (module.double() for module in work.networks())
    *train, judge = [(x.double(), y) for x, y in (*work.batches, work.judge)]
    theta = list(weights.parameters())
    names = [name for name, _ in net.named_parameters()]

    def predict(w: Sequence[Tensor], inputs: Tensor) -> Tensor:
        found: Tensor = functional_call(net, dict(zip(names, w, strict=True)), (inputs,))
        return found

    path = [[p.detach().clone() for p in net.parameters()]]
    momentum = [torch.zeros_like(p) for p in path[0]]
    for batch in train:
        w = [p.requires_grad_() for p in path[-1]]
        loss = weighted_loss(lambda x, w=w: predict(w, x), weights, batch)  # type: ignore[misc]
        gradient = torch.autograd.grad(loss, w)
        with torch.no_grad():
            momentum = [
                MOMENTUM * b + g + WEIGHT_DECAY * p
                for b, g, p in zip(momentum, gradient, w, strict=True)
            ]
            path.append([p - work.lr * b for p, b in zip(w, momentum, strict=True)])
    found = {k: [torch.zeros_like(t) for t in theta] for k in counts}
    lambdas: dict[int, list[Tensor]] = {}
    nus: dict[int, list[Tensor]] = {}
    for step in range(len(train), 0, -1):
        if step in counts:
            w = [p.requires_grad_() for p in path[step]]
            loss = judged_loss(lambda x, w=w: predict(w, x), judge)  # type: ignore[misc]
            lambdas[step] = list(torch.autograd.grad(loss, w))
            nus[step] = [torch.zeros_like(p) for p in w]
        w = [p.requires_grad_() for p in path[step - 1]]
        loss = weighted_loss(lambda x, w=w: predict(w, x), weights, train[step - 1])  # type: ignore[misc]
        gradient = torch.autograd.grad(loss, w, create_graph=True)
        for k in lambdas:
            beta = [n - work.lr * a for n, a in zip(nus[k], lambdas[k], strict=True)]
            products = torch.autograd.grad(gradient, [*w, *theta], beta, retain_graph=True)
            lambdas[k] = [
                a + WEIGHT_DECAY * b + h
                for a, b, h in zip(lambdas[k], beta, products[: len(w)], strict=True)
            ]
            nus[k] = [MOMENTUM * b for b in beta]
            found[k] = [t + m for t, m in zip(found[k], products[len(w) :], strict=True)]
    return {k: flat(gradients) for k, gradients in found.items()}
