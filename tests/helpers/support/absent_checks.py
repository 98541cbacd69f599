"""What each of two processes does about upper parameters without a hypergradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, ImplicitProblem, LossError

from .checks import check
from .zoo import over

METHODS = ("darts", "cg", "unroll")


class Gate(nn.Module):
    """A factor that is always used, and one used where ``samples`` of a share hold the mark."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.somewhere = (
            nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (0.5, 0.25)
        )

    def forward(self, used: bool) -> Tensor:
        return self.always + (self.somewhere if used else 0.0)


class Low(ImplicitProblem):
    """``cfg``: whether this process uses both factors."""

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return (self.top(self.cfg) * (self.module(x).squeeze(1) - y) ** 2).mean()


class Top(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y = batch
        return ((self.low(x).squeeze(1) - y) ** 2).mean()


def gated(method: str, used: bool, rank: int, world: int) -> Any:
    net, gate = nn.Linear(3, 1).double(), Gate()
    nn.init.constant_(net.weight, 0.5)
    nn.init.constant_(net.bias, 0.0)
    made: Any = []
    for kind, name, module, config in (
        (Top, "top", gate, Config()),
        (Low, "low", net, Config(type=method)),
    ):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        share = x[rank::world]
        made.append(
            kind(
                name,
                config,
                module,
                torch.optim.SGD(module.parameters(), lr=0.1),
                train_data_loader=[(share, share.sum(1))],
                extra_config=used,
            )
        )
    strategy = "cpu" if world == 1 else "distributed"
    return over(*made, train_iters=2, strategy=strategy, backend="gloo")


@check
def absent_in_one(rank: int, world: int, folder: Path) -> Any:
    """Only the last process uses the second factor: all learn it."""
    found = {}
    for method in METHODS:
        engine = gated(method, rank == world - 1, rank, world)
        engine.run()
        found[method] = engine.top.module.somewhere.detach().clone()
    return found


@check
def absent_in_all(rank: int, world: int, folder: Path) -> Any:
    found = {}
    for method in METHODS:
        try:
            gated(method, False, rank, world).run()
        except LossError as error:
            found[method] = str(error)
    return found
