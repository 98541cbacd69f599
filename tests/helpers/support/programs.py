"""Programs written once against the names Betty and metaweight share, in float64.

Each builder takes a :class:`Library` and returns its engine, so that the same text runs on both.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Library:
    """The four names a program imports, and how the library spells "on the CPU"."""

    Engine: Any
    EngineConfig: Any
    ImplicitProblem: Any
    Config: Any


def metaweight() -> Library:
    import metaweight as m

    return Library(m.Engine, m.EngineConfig, m.ImplicitProblem, m.Config)


def betty() -> Library:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    return Library(Engine, EngineConfig, ImplicitProblem, Config)


@dataclass
class Options:
    """Settings a parity case varies."""

    inner: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = torch.optim.SGD
    optimizer_settings: dict[str, Any] = field(
        default_factory=lambda: {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    )
    scheduler: bool = True


def batches(seed: int, number: int, size: int = 12, features: int = 5) -> list[Any]:
    """A fixed list of classification batches, so that both libraries see the same data."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, 3, generator=generator, dtype=torch.float64)
    result = []
    for _ in range(number):
        x = torch.randn(size, features, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        result.append((x, (x @ truth + noise).argmax(1)))
    return result


def mlp(seed: int, sizes: tuple[int, ...], last: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.Tanh()]
        layers = layers[:-1] + ([last] if last is not None else [])
        return nn.Sequential(*layers).double()


def meta_weight_net(lib: Library, options: Options, steps: int) -> Any:
    """Meta-Weight-Net on an MLP: two levels, the weights computed from detached losses."""

    class Outer(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            return {"loss": F.cross_entropy(self.inner(x), y), "acc": 1.0}

    class Inner(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            losses = F.cross_entropy(self.module(x), y, reduction="none").unsqueeze(1)
            return (self.outer(losses.detach()) * losses).mean()

    net, weights = mlp(0, (5, 8, 3)), mlp(1, (1, 10, 1), nn.Sigmoid())
    inner_optimizer = options.optimizer(net.parameters(), **options.optimizer_settings)
    scheduler = None
    if options.scheduler:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(inner_optimizer, [10, 25], 0.5)
    outer = Outer(
        name="outer",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=1e-2),
        train_data_loader=batches(3, 4),
        config=lib.Config(**options.outer),
    )
    inner = Inner(
        name="inner",
        module=net,
        optimizer=inner_optimizer,
        scheduler=scheduler,
        train_data_loader=batches(4, 7),
        config=lib.Config(**options.inner),
    )
    return lib.Engine(
        problems=[outer, inner],
        config=lib.EngineConfig(train_iters=steps, strategy="cpu", **options.engine),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )


class Vector(nn.Module):
    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.double())

    def forward(self, x: torch.Tensor | None = None) -> torch.Tensor:
        return self.w if x is None else x @ self.w


def logistic_regression(lib: Library, options: Options, steps: int) -> Any:
    """One regularisation strength per feature, the inner loop restarted at zero each time."""

    class Outer(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            return F.binary_cross_entropy_with_logits(self.inner(x), y)

        def param_callback(self):
            for p in self.trainable_parameters():
                p.data.clamp_(min=1e-8)

    class Inner(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            penalty = 0.5 * (self.module.w**2 * self.outer()).sum()
            return F.binary_cross_entropy_with_logits(self.module(x), y) + penalty

        def on_inner_loop_start(self):
            self.module.w.data.zero_()

    generator = torch.Generator().manual_seed(7)
    x = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(6, generator=generator, dtype=torch.float64) > 0).double()
    child, parent = Vector(torch.zeros(6)), Vector(torch.ones(6))
    outer = Outer(
        name="outer",
        module=parent,
        optimizer=torch.optim.SGD(parent.parameters(), lr=1.0, momentum=0.9),
        train_data_loader=[(x[40:], y[40:])],
        config=lib.Config(**options.outer),
    )
    inner = Inner(
        name="inner",
        module=child,
        optimizer=torch.optim.SGD(child.parameters(), lr=0.1),
        train_data_loader=[(x[:40], y[:40])],
        config=lib.Config(**options.inner),
    )
    return lib.Engine(
        problems=[outer, inner],
        config=lib.EngineConfig(train_iters=steps, strategy="cpu", **options.engine),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )


def three_levels(lib: Library, options: Options, steps: int) -> Any:
    """Top reaches the leaf and the middle: two paths of different length end at it."""

    class Top(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            return F.cross_entropy(self.middle(x), y)

    class Middle(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            distance = sum(
                ((p - q) ** 2).sum()
                for p, q in zip(self.module.parameters(), self.leaf_.parameters(), strict=True)
            )
            strength = self.top(torch.zeros(1, 1, dtype=torch.float64)).mean()
            return F.cross_entropy(self.module(x), y) + strength * distance

    class Leaf(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            losses = F.cross_entropy(self.module(x), y, reduction="none").unsqueeze(1)
            weights = self.top(losses.detach())
            anchor = sum(
                ((p - q) ** 2).sum()
                for p, q in zip(self.module.parameters(), self.middle.parameters(), strict=True)
            )
            return (weights * losses).mean() + 0.01 * anchor

    def make(cls, name, module, seed, config, lr):
        return cls(
            name=name,
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=lr, momentum=0.5),
            train_data_loader=batches(seed, 5),
            config=lib.Config(**config),
        )

    top = make(Top, "top", mlp(2, (1, 6, 1), nn.Sigmoid()), 11, options.outer, 0.05)
    middle = make(Middle, "middle", mlp(3, (5, 3)), 12, options.inner, 0.05)
    leaf = make(Leaf, "leaf_", mlp(4, (5, 3)), 13, options.inner, 0.1)
    return lib.Engine(
        problems=[top, middle, leaf],
        config=lib.EngineConfig(train_iters=steps, strategy="cpu", **options.engine),
        dependencies={
            "u2l": {top: [leaf, middle], middle: [leaf]},
            "l2u": {leaf: [middle], middle: [top]},
        },
    )


def two_leaves(lib: Library, options: Options, steps: int) -> Any:
    """One upper problem weighs two leaves, which step at different paces."""

    class Outer(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            return F.cross_entropy(self.left(x) + self.right(x), y)

    class Leaf(lib.ImplicitProblem):  # type: ignore[name-defined]
        def training_step(self, batch):
            x, y = batch
            losses = F.cross_entropy(self.module(x), y, reduction="none").unsqueeze(1)
            return (self.outer(losses.detach()) * losses).mean()

    def make(cls, name, module, seed, config, lr):
        return cls(
            name=name,
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9),
            train_data_loader=batches(seed, 5),
            config=lib.Config(**config),
        )

    outer = make(Outer, "outer", mlp(5, (1, 6, 1), nn.Sigmoid()), 21, options.outer, 0.05)
    left = make(Leaf, "left", mlp(6, (5, 3)), 22, options.inner, 0.1)
    right = make(Leaf, "right", mlp(7, (5, 4, 3)), 23, {"unroll_steps": 2, **options.inner}, 0.1)
    if "unroll_steps" in options.inner:
        left = make(Leaf, "left", mlp(6, (5, 3)), 22, {**options.inner, "unroll_steps": 2}, 0.1)
    return lib.Engine(
        problems=[outer, left, right],
        config=lib.EngineConfig(train_iters=steps, strategy="cpu", **options.engine),
        dependencies={
            "u2l": {outer: [left, right]},
            "l2u": {left: [outer], right: [outer]},
        },
    )


def trajectory(builder: Any, lib: Library, options: Options, steps: int) -> dict[str, torch.Tensor]:
    """Run a program and return all parameters of all problems, flattened, by problem name."""
    with contextlib.redirect_stdout(io.StringIO()):
        engine = builder(lib, options, steps)
        engine.run()
    return {
        problem.name: torch.cat([p.detach().reshape(-1) for p in problem.module.parameters()])
        for problem in engine.problems
    }
