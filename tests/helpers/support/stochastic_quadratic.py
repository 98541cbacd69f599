"""Quadratic programs whose batches differ, for methods that keep a state from step to step.

Batch ``i`` of the lower problem has ``L_i(w; θ) = ½ wᵀA_i w + wᵀB_i Σθ - c_iᵀw``, batch ``j`` of an
upper one ``F_j(w) = ½ |w - t_j|²``. Means over all batches are those of :data:`MEAN` and
:data:`TARGET`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from metaweight import Config, Engine, EngineConfig, Hook, ImplicitProblem

from .quadratic import TARGET, Blocks, Quadratic, spread, with_eigenvalues

SIZE, INPUTS, BATCHES = 6, 3, 4
MEAN = with_eigenvalues(spread(SIZE, 0.5), inputs=INPUTS)


class Lower(ImplicitProblem):
    """``cfg``: the names of the problems above it."""

    def training_step(self, batch: Any) -> Tensor:
        theta = sum(getattr(self, name).module() for name in self.cfg)
        return Quadratic(*batch).loss(self.module(), theta)


class Upper(ImplicitProblem):
    """Pulls ``w`` to the target of its batch."""

    def training_step(self, batch: Any) -> Tensor:
        return 0.5 * (self.lower.module() - batch).square().sum()


def draws(seed: int, shape: Sequence[int], noise: float, rank: int, world: int) -> list[Tensor]:
    """Changes of zero mean over the batches; in several processes, shares of these."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn((2, BATCHES, *shape), generator=generator, dtype=torch.float64)
    given = noise * (given - given.mean((0, 1)))
    return list(given.mean(0) if world == 1 else given[rank])


def batches(noise: float, rank: int = 0, world: int = 1) -> list[tuple[Tensor, ...]]:
    """The batches of the lower problem."""
    parts = (MEAN.hessian, MEAN.mixed, MEAN.linear)
    changes = [draws(k, p.shape, noise, rank, world) for k, p in enumerate(parts)]
    changes[0] = [(c + c.T) / 2 for c in changes[0]]
    return [tuple(p + c[i] for p, c in zip(parts, changes, strict=True)) for i in range(BATCHES)]


def program(
    method: Any,
    *,
    iterations: int = 10,
    noise: float = 0.0,
    lr: float = 0.0,
    uppers: Sequence[str] = ("upper",),
    every: int = 1,
    accumulation: int = 1,
    rank: int = 0,
    world: int = 1,
    hooks: Sequence[Hook] = (),
    upper: type[ImplicitProblem] = Upper,
    lower_loader: Any = None,
    upper_loader: Any = None,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Engine:
    """A program of one lower problem and the named upper ones, in one process or in several."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype)
    module = Blocks(start)
    loader = batches(noise, rank, world) if lower_loader is None else lower_loader
    lower = Lower(
        "lower",
        Config(type=method, unroll_steps=every),
        module,
        torch.optim.SGD(module.parameters(), lr=lr),
        train_data_loader=[tuple(t.to(dtype) for t in b) for b in loader]
        if isinstance(loader, list)
        else loader,
        extra_config=tuple(uppers),
    )
    above = []
    for number, name in enumerate(uppers):
        own = Blocks(torch.linspace(-1, 2, INPUTS, dtype=torch.float64).to(dtype))
        shifts = draws(7 + number, (SIZE,), noise, rank, world)
        targets = [(TARGET + number + s).to(dtype) for s in shifts]
        above.append(
            upper(
                name,
                Config(gradient_accumulation=accumulation),
                own,
                torch.optim.SGD(own.parameters(), lr=lr),
                train_data_loader=targets if upper_loader is None else upper_loader,
            )
        )
    edges = {"u2l": {up: [lower] for up in above}, "l2u": {lower: above}}
    strategy = {"strategy": "distributed", "backend": "gloo"} if world > 1 else {"strategy": "cpu"}
    config = EngineConfig(train_iters=iterations, **{**strategy, **settings})
    return Engine([*above, lower], config, edges, hooks=hooks)


class Gradients(Hook):
    """Keeps the gradient of each upper step, as one vector a step, by problem."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def after_gradient(self, engine: Engine, problem: Any) -> None:
        if problem.name != "lower":
            gradient = torch.cat([p.grad.reshape(-1) for p in problem.parameters()])
            self.seen.setdefault(problem.name, []).append(gradient)


class Numbered:
    """Batches in another order each epoch, each of which it can name."""

    order: ClassVar = [2, 0, 3, 1, 1, 3, 0, 2]

    def __init__(self, data: Sequence[Any]) -> None:
        self.data, self.given = data, 0
        self.batch_number = 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for _ in self.data:
            self.batch_number = self.order[self.given % 8]
            self.given += 1
            yield self.data[self.batch_number]


class Replacing(Hook):
    """Gives a problem another loader at the end of an iteration."""

    only_shows = True

    def __init__(self, problem: str, loader: Any, iteration: int) -> None:
        self.problem, self.loader, self.iteration = problem, loader, iteration

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step == self.iteration:
            getattr(engine, self.problem).set_train_data_loader(self.loader)


def kept(engine: Engine) -> dict[tuple[str, ...], Any]:
    """The states of the lower problem's method, by path."""
    found: dict[tuple[str, ...], Any] = engine.lower.step_state.method_states.kept
    return found


def parameters(engine: Engine) -> Tensor:
    """All parameters of all problems, in one vector."""
    return torch.cat(
        [p.detach().reshape(-1) for each in engine.problems for p in each.parameters()]
    )
