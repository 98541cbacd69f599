"""A hypergradient of one's own, tried on a ridge regression whose answer is known.

``AlongV`` answers ``H x = v`` within the multiples of ``v``: ``x = (v·v / v·Hv) v``. The penalty of
a ridge regression is learned by it, and its hypergradients are compared with the closed form: equal
with one feature, where all vectors are multiples of ``v``, and far off with five. ::

    python examples/own_hypergradient.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaweight import (
    Config,
    Engine,
    Hypergradient,
    ImplicitProblem,
    LowerProblem,
    Product,
    Status,
    last_loss,
)
from metaweight.products import hessian_vector_product, mixed_vector_product

Batch = tuple[Tensor, Tensor]


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


class AlongV(Hypergradient):
    """``-(∂²L/∂θ∂w) x`` with the multiple of ``v`` that minimises ``x·Hx/2 - v·x`` for ``x``."""

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        loss = last_loss(lower)
        with lower.evaluation(second_order=True):
            curved = lower.mean(hessian_vector_product(loss, lower.weights, vector))
            scale = dot(vector, vector) / dot(vector, curved)
            mixed = mixed_vector_product(loss, lower.weights, upper_parameters, vector)
        return Product([-scale * t for t in mixed], Status("AlongV", values={"scale": scale}))


class Penalty(nn.Module):
    """A positive number, learned by its logarithm, and the gradients that this has had."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self) -> Tensor:
        return self.log.exp()


class Fit(ImplicitProblem[nn.Linear]):
    """``min_w mean (w·x - y)² + exp(a) w·w``."""

    def training_step(self, batch: Batch) -> Tensor:
        weight = self.module.weight
        error: Tensor = (self.module(batch[0]) - batch[1]).square().mean()
        penalty: Tensor = self.strength()
        return error + penalty * weight.square().sum()


class Strength(ImplicitProblem[Penalty]):
    """``min_a mean (w·x - y)²`` on data that ``w`` is not fitted to."""

    def training_step(self, batch: Batch) -> Tensor:
        loss: Tensor = (self.fit(batch[0]) - batch[1]).square().mean()
        return loss

    def grad_callback(self) -> None:
        log = self.module.log
        assert log.grad is not None
        self.module.seen.append((log.detach().clone(), log.grad.clone()))


def closed_form(train: Batch, valid: Batch, log: Tensor) -> Tensor:
    """Return the derivative by ``a`` of the upper loss at the solution of the lower problem."""
    a = log.detach().clone().requires_grad_()
    (x, y), eye = train, torch.eye(train[0].shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(x.T @ x / len(x) + a.exp() * eye, x.T @ y / len(x))
    (derivative,) = torch.autograd.grad((valid[0] @ solution - valid[1]).square().mean(), a)
    return derivative


def main(features: int = 1, steps: int = 60) -> float:
    """Learn the penalty; return the relative error of its hypergradients, all taken together."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, features, generator=generator, dtype=torch.float64)
    y = 0.3 * x.sum(1, keepdim=True)
    y = y + torch.randn(60, 1, generator=generator, dtype=torch.float64)
    train, valid = (x[:30], y[:30]), (x[30:], y[30:])
    line, penalty = nn.Linear(features, 1, bias=False, dtype=torch.float64), Penalty()
    # 60 steps of the fit for one of the penalty: it has converged by then.
    fit = Fit(
        "fit",
        Config(type=AlongV(), unroll_steps=60),
        module=line,
        optimizer=torch.optim.SGD(line.parameters(), 0.2),
        train_data_loader=[train],
    )
    strength = Strength(
        "strength",
        module=penalty,
        optimizer=torch.optim.SGD(penalty.parameters(), 1.0),
        train_data_loader=[valid],
    )
    Engine.bilevel(strength, fit, train_iters=60 * steps, progress=False).run()
    truth = torch.stack([closed_form(train, valid, log) for log, _ in penalty.seen])
    found = torch.stack([gradient for _, gradient in penalty.seen])
    error = float((found - truth).norm() / truth.norm())
    print(f"{features} feature(s): relative error of {len(found)} hypergradients {error:.1e}")
    return error


if __name__ == "__main__":
    main(1)
    main(5)
