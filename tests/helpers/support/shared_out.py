"""Programs for one process or several, on the same batches: whole ones, or each its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import (
    MASOBA,
    SABA,
    SAMA,
    SOBA,
    AmIGO,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    Hook,
    ImplicitProblem,
    IterativeProblem,
    Neumann,
    Nystrom,
    Penalty,
    ReweightedProblem,
    Reweighting,
    StocBiO,
    Unroll,
    ZeroOrder,
)

BATCH = 8
TYPES: dict[str, Any] = {
    "darts": FiniteDifference(),
    "reweighting": Reweighting(),
    "reweighting one-sided": Reweighting(derivative="one_sided"),
    "reweighting forward mode": Reweighting(derivative="forward_mode"),
    "sama": SAMA(alpha=0.01),
    "cg": ConjugateGradient(iterations=4, damping=30.0),
    "neumann": Neumann(iterations=3, alpha=0.05, damping=5.0),
    "nystrom": Nystrom(rank=4, damping=5.0),
    "soba": SOBA(lr=0.05, damping=5.0),
    "masoba": MASOBA(lr=0.05, damping=5.0, batches="fresh"),
    "amigo": AmIGO(lr=0.05, damping=5.0, iterations=2),
    "stocbio": StocBiO(alpha=0.05, damping=5.0, iterations=2),
    "cg warm": ConjugateGradient(iterations=2, damping=30.0, warm=True),
    "saba": SABA(lr=0.05, damping=5.0),
    "unroll": Unroll(),
    "unroll one-sided": Unroll(product="one_sided"),
    "unroll one-sided, plain": Unroll(product="one_sided"),
    "unroll differences": Unroll(product="finite_difference"),
    "unroll forward": Unroll(product="forward_over_reverse"),
    "unroll full memory": Unroll(memory="full"),
    "unroll auto": Unroll(memory="auto"),
    "penalty": Penalty(steps=3, lr=0.1),
    "penalty, plain": Penalty(steps=3, lr=0.1),
    "bome": Penalty(steps=3, lr=0.1, form="bome"),
    "zero order": ZeroOrder(samples=2),
}
ADAM = ("sama", "unroll", "unroll one-sided")
PLAIN = ("darts", "cg", "neumann", "nystrom", "unroll", "unroll one-sided, plain", "penalty, plain")

Norms = Callable[[], Sequence[nn.Module]]


def batch_norm() -> list[nn.Module]:
    return [nn.BatchNorm1d(6)]


class Net(nn.Module):
    """Two layers, and what normalises the inner units before each of the next."""

    def __init__(self, inputs: int, outputs: int = 1, *, norm: Norms | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)]
        for place, layer in enumerate(norm() if norm else ()):
            layers.insert(1 + 2 * place, layer)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _losses(problem: Any, batch: Any) -> Tensor:
    x, y = batch
    return ((problem.module(x).squeeze(1) - y) ** 2) + 0.05 * sum(
        p.square().sum() for p in problem.module.parameters()
    )


class Declared(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        return _losses(self, batch)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return self.top(losses[:, None]).sigmoid().squeeze(1)


class _Weighted:
    def training_step(self, batch: Any) -> Any:
        losses = _losses(self, batch)
        weights = self.top(losses.detach()[:, None]).sigmoid().squeeze(1)  # type: ignore[attr-defined]
        return (weights * losses).mean()


class Weighted(_Weighted, ImplicitProblem):
    """The same loss, undeclared."""


class Unrolled(_Weighted, IterativeProblem):
    """The same, of an iterative problem."""


class Judge(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return ((self.low(x).squeeze(1) - y) ** 2).mean()


class Middle(ImplicitProblem):
    """Learns inputs of the lower problem's weights, and is itself regularised by the top."""

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        strength = self.highest(torch.ones(1, 1, dtype=torch.float64)).sigmoid().mean()
        own = sum(p.square().sum() for p in self.module.parameters())
        return ((self.low(x).squeeze(1) - y) ** 2).mean() + strength * own


class Highest(ImplicitProblem):
    """Wants the weights that the middle one gives large losses to be small."""

    def training_step(self, batch: Any) -> Any:
        _, y = batch
        return (self.top(y.square()[:, None]).sigmoid() ** 2).mean()


def batches(seed: int, number: int, rank: int, world: int) -> list[Any]:
    """Whole batches in one process, every ``world``-th sample of each in several."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        x = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        found.append((x[rank::world], (x.sum(1) + noise)[rank::world]))
    return found


def run_config(world: int, **settings: Any) -> EngineConfig:
    """The engine's settings in one process or in several."""
    strategy = settings.pop("strategy", "distributed" if world > 1 else "cpu")
    backend = {"backend": "gloo"} if world > 1 else {}
    return EngineConfig(strategy=strategy, **backend, **{"train_iters": 4, **settings})


def program(
    kind: str,
    rank: int,
    world: int,
    *,
    accumulation: int = 1,
    clipping: float = 0.0,
    norm: Norms | None = None,
    hooks: Sequence[Hook] = (),
    engine: type[Engine] = Engine,
    **settings: Any,
) -> Engine:
    """A bilevel program of one hypergradient method, its state the same whatever ``world``."""
    torch.default_generator.manual_seed(1 + rank)
    low, top = Net(3, norm=norm), Net(1)
    if rank == 0:
        torch.default_generator.manual_seed(7)
    config = Config(
        type=TYPES[kind],
        unroll_steps=2,
        gradient_accumulation=accumulation,
        gradient_clipping=clipping,
    )
    cls: type[Any] = Weighted if kind in PLAIN else Declared
    optimizer: Any = torch.optim.SGD(low.parameters(), 0.1, momentum=0.5)
    if kind in ADAM:
        optimizer = torch.optim.Adam(low.parameters(), 0.02)
    lower = cls("low", config, low, optimizer, train_data_loader=batches(3, 5, rank, world))
    upper = Judge(
        "top",
        Config(gradient_accumulation=accumulation, gradient_clipping=clipping),
        top,
        torch.optim.Adam(top.parameters(), 0.05),
        train_data_loader=batches(4, 3, rank, world),
    )
    edges = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    # Two steps of the upper optimizer: the second finds state, and lower ones that it has moved.
    iterations = 2 * 2 * accumulation * accumulation
    whole = {"train_iters": iterations, **settings}
    return engine([upper, lower], run_config(world, **whole), edges, hooks=hooks)


def chain(kind: str, rank: int, world: int, **settings: Any) -> Engine:
    """Three levels, each with a hypergradient through the one below."""
    torch.default_generator.manual_seed(1 + rank)
    nets = [Net(3), Net(1), Net(1)]
    config = Config(type=TYPES[kind], unroll_steps=1)
    made: list[Any] = []
    for cls, name, net, seed in zip(
        (Weighted, Middle, Highest), ("low", "top", "highest"), nets, (3, 4, 5), strict=True
    ):
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        data = batches(seed, 3, rank, world)
        made.append(cls(name, config, net, optimizer, train_data_loader=data))
    low, top, highest = made
    edges = {
        "u2l": {highest: [top], top: [low]},
        "l2u": {low: [top], top: [highest]},
    }
    return Engine([highest, top, low], run_config(world, train_iters=4, **settings), edges)


def parameters(engine: Engine) -> dict[str, Tensor]:
    """All parameters and floating buffers, flat, by problem."""
    return {
        p.name: torch.cat(
            [
                t.detach().reshape(-1).double()
                for t in (*p.module.parameters(), *p.module.buffers())
                if t.is_floating_point()
            ]
        )
        for p in engine.problems
    }


Check = Callable[[int, int], Any]
