"""Three levels, of which the middle one is unrolled and differentiates through the lowest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, IterativeProblem, Unroll


class Chain:
    """θ judges m, m is fitted by its own loss and by what it does to the lower w."""

    class Top(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return ((self.mid.module.weight - 1.0) ** 2).sum() + self.low.module.weight.sum()

    class Mid(IterativeProblem):
        def training_step(self, batch: Any) -> Tensor:
            m, t = self.module.weight, self.top.module.weight
            return (t.sin() * m**2).sum() + (self.low.module.weight**2).sum()

    class Low(IterativeProblem):
        def training_step(self, batch: Any) -> Tensor:
            return ((self.module.weight - self.mid.module.weight) ** 2).sum()


def chain(kind: Unroll) -> tuple[Engine, Any]:
    torch.default_generator.manual_seed(0)
    names = (("top", Chain.Top, 0.0), ("mid", Chain.Mid, 0.1), ("low", Chain.Low, 0.1))
    problems = []
    for name, cls, lr in names:
        module = nn.Linear(3, 1, bias=False).double()
        config = Config(type=kind, unroll_steps=2) if name == "mid" else None
        optimizer = torch.optim.SGD(module.parameters(), lr=lr)
        problems.append(cls(name, config, module, optimizer, train_data_loader=[0]))
    top, mid, low = problems
    engine = Engine(
        problems,
        EngineConfig(strategy="cpu"),
        {"u2l": {top: [mid], mid: [low]}, "l2u": {low: [mid], mid: [top]}},
    )
    return engine, top
