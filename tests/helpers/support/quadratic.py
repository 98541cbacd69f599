"""Quadratic programs, whose hypergradients have a closed form.

A level is ``L(w; θ) = ½ wᵀA w + wᵀB θ - cᵀw``, so ``w* = A⁻¹(c - Bθ)`` and, whatever ``w`` is,
``(dw*/dθ)ᵀ v = -Bᵀ A⁻¹ v``. The uppermost problem has ``F(w) = ½ |w - target|²``, so ``v`` is
``w - target``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Status
from support.zoo import over

TARGET = 1.5


@dataclass(frozen=True)
class Quadratic:
    """The numbers of one level."""

    hessian: Tensor
    """``A``, ``(n, n)``."""

    mixed: Tensor
    """``B``, ``(n, m)`` for ``m`` numbers ``θ``."""

    linear: Tensor
    """``c``, ``(n,)``."""

    def loss(self, w: Tensor, theta: Tensor) -> Tensor:
        return 0.5 * w @ (self.hessian @ w) + w @ (self.mixed @ theta) - self.linear @ w

    def to(self, dtype: torch.dtype) -> Quadratic:
        return Quadratic(self.hessian.to(dtype), self.mixed.to(dtype), self.linear.to(dtype))

    def damped(self, damping: float) -> Tensor:
        """``A + damping I``."""
        return self.hessian + damping * torch.eye(len(self.hessian), dtype=self.hessian.dtype)

    def product(self, vector: Tensor, damping: float = 0.0) -> Tensor:
        """``-Bᵀ (A + damping I)⁻¹ v``."""
        return -self.mixed.T @ torch.linalg.solve(self.damped(damping), vector)


def with_eigenvalues(eigenvalues: Tensor, inputs: int = 4, seed: int = 0) -> Quadratic:
    """A level with these eigenvalues, along random orthonormal directions."""
    generator = torch.Generator().manual_seed(seed)
    n, dtype = len(eigenvalues), eigenvalues.dtype
    directions = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=dtype)).Q
    hessian = (directions * eigenvalues) @ directions.T
    return Quadratic(
        (hessian + hessian.T) / 2,
        torch.randn(n, inputs, generator=generator, dtype=dtype),
        torch.randn(n, generator=generator, dtype=dtype),
    )


def spread(number: int, low: float, high: float = 1.0) -> Tensor:
    """Eigenvalues at even ratios."""
    return torch.logspace(math.log10(low), math.log10(high), number, dtype=torch.float64)


class Blocks(nn.Module):
    """A vector kept as several parameters of different shapes; calling it returns the vector."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        pieces = [start]
        if len(start) >= 4:
            half = 2 * (len(start) // 4)
            pieces = [start[:half].reshape(2, -1), start[half:-1], start[-1].reshape(1, 1, 1)]
        self.blocks = nn.ParameterList([nn.Parameter(p.clone()) for p in pieces if p.numel()])

    def forward(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.blocks])

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut a vector into pieces shaped like the parameters."""
        pieces = flat.split([p.numel() for p in self.blocks])
        return [piece.reshape(p.shape) for piece, p in zip(pieces, self.blocks, strict=True)]


class Level(ImplicitProblem):
    """``cfg``: its :class:`Quadratic` and the problem that holds ``θ``. A batch is added to it."""

    def training_step(self, batch: Any) -> Tensor:
        quadratic, source = self.cfg
        w, theta = self.module(), getattr(self, source).module()
        change = Quadratic(*batch)
        return quadratic.loss(w, theta) + change.loss(w, theta)


class Judge(ImplicitProblem):
    """``½ |w - target|²``; ``cfg``: the name of the problem it judges."""

    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * (getattr(self, self.cfg).module() - TARGET).pow(2).sum()


def level(quadratic: Quadratic, name: str, source: str, config: Config, lr: float = 0.0) -> Level:
    """A level that starts at random numbers; its micro-batches differ and have zero mean."""
    generator = torch.Generator().manual_seed(len(quadratic.linear))
    parts = (quadratic.hessian, quadratic.mixed, quadratic.linear)
    start = torch.randn(parts[2].shape, generator=generator, dtype=torch.float64)
    number = config.gradient_accumulation
    draws = [
        [torch.randn(p.shape, generator=generator, dtype=torch.float64) for _ in range(number)]
        for p in parts
    ]
    draws[0] = [d + d.T for d in draws[0]]
    batches = [
        tuple((d[i] - sum(d) / number).to(p.dtype) for d, p in zip(draws, parts, strict=True))
        for i in range(number)
    ]
    module = Blocks(start.to(parts[2].dtype))
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    return Level(
        name,
        config,
        module,
        optimizer,
        train_data_loader=batches,
        extra_config=(quadratic, source),
    )


def judge(size: int, name: str, of: str, dtype: torch.dtype) -> Judge:
    """The uppermost problem, with ``size`` parameters."""
    module = Blocks(torch.linspace(-1, 2, size, dtype=torch.float64).to(dtype))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    return Judge(name, None, module, optimizer, train_data_loader=[torch.zeros(1)], extra_config=of)


def bilevel(quadratic: Quadratic, config: Config) -> Engine:
    """An engine of ``lower``, the quadratic, and ``upper``; parameters stay where they are."""
    lower = level(quadratic, "lower", "upper", config)
    upper = judge(quadratic.mixed.shape[1], "upper", "lower", quadratic.mixed.dtype)
    return over(upper, lower, train_iters=config.gradient_accumulation)


def three_levels(leaf: Quadratic, middle: Quadratic, config: Config) -> Engine:
    """``top`` enters the loss of ``leaf_``, ``leaf_`` that of ``middle``, which ``top`` judges."""
    top = judge(leaf.mixed.shape[1], "top", "middle", leaf.mixed.dtype)
    mid = level(middle, "middle", "leaf_", config)
    low = level(leaf, "leaf_", "top", config)
    return Engine(
        [top, mid, low],
        EngineConfig(train_iters=config.gradient_accumulation**2, strategy="cpu"),
        {"u2l": {top: [low]}, "l2u": {low: [mid], mid: [top]}},
    )


def gradients(engine: Engine, name: str) -> Tensor:
    """Run the engine and return the gradient its problem ``name`` was given last, in one vector."""
    problem = getattr(engine, name)
    seen: list[Tensor] = []

    def look() -> None:
        seen.append(flat([p.grad for p in problem.module.parameters()]))

    problem.grad_callback = look
    engine.run()
    return seen[-1]


def evaluated(quadratic: Quadratic, method: Any, **config: Any) -> tuple[Tensor, Tensor, Status]:
    """The hypergradient, ``v`` and the status of one evaluation by the engine."""
    engine = bilevel(quadratic, Config(type=method, **config))
    gradient = gradients(engine, "upper")
    return gradient, engine.lower.module().detach() - TARGET, engine.lower.hypergradient_status


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in double precision."""
    return float((actual.double() - expected).norm() / expected.norm())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
