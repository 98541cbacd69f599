"""Programs whose upper loss is measured at displaced parameters."""

from __future__ import annotations

import torch
from metaweight.problems.hypergradients.value import seed_of

from metaweight import (
    Config,
    Engine,
    EngineConfig,
    ImplicitProblem,
    ZeroOrder,
)

from .small import Point

ONE = ZeroOrder(samples=1, radius=1e-5, seed=5)


def directions(method, lower, upper):
    """The first direction that was drawn at the lower problem's present count."""
    generator = torch.Generator().manual_seed(seed_of(method.seed, lower.name, lower.count))
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in upper.parameters()]


def along(gradient, direction):
    slope = sum((g * e).sum() for g, e in zip(gradient, direction, strict=True))
    return [slope * e for e in direction]


class Lower(ImplicitProblem):
    """Moves towards the upper problem's parameters, ever more slowly."""

    def training_step(self, batch):
        return (
            (self.module.w - self.upper.module.w.sin()) ** 2
        ).sum() + batch * self.module.w.sum()


class Upper(ImplicitProblem):
    """A loss that also depends on its own parameters, with a graph or without."""

    def training_step(self, batch):
        loss = (self.lower.module.w**2).sum() + 3 * (self.module.w**3).sum()
        return loss.detach() if self.cfg == "no graph" else loss


def numbers(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def lower_problem(kind=Lower, name="lower", method=ONE, steps=2, **more):
    low = Point(0.3, -0.4)
    return kind(
        name,
        Config(type=method, unroll_steps=steps),
        low,
        torch.optim.SGD(low.parameters(), 0.1, momentum=0.5),
        train_data_loader=numbers(0.1, 0.2, 0.4),
        **more,
    )


def upper_problem(kind=Upper, name="upper", mode="graph", config=None):
    up = Point(0.5, 1.0)
    return kind(
        name,
        config,
        up,
        torch.optim.SGD(up.parameters(), 0.0),
        train_data_loader=numbers(0.0),
        extra_config=mode,
    )


def joined(upper, *lowers, below=None):
    l2u = {lower: [upper] for lower in lowers}
    problems = [upper, *lowers]
    if below is not None:
        problems.append(below)
        l2u[below] = [lowers[0]]
    engine = Engine(
        problems,
        EngineConfig(strategy="cpu"),
        {"u2l": {upper: list(lowers)}, "l2u": l2u},
    )
    seen = {}

    def look(problem):
        seen[problem.name] = [p.grad.clone() for p in problem.module.parameters()]

    upper.grad_callback = lambda: look(upper)
    for _ in range(4):
        engine.train_step()
    return engine, seen[upper.name]
