"""A small network whose average is taken, and what the two hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaweight.averaging import EMA

WARM_UPS = ("none", "mean_teacher", "ict", "bias_corrected")


BUFFERS = ("copy", "ema", "own", "none")


class Number(nn.Module):
    """One parameter."""

    def __init__(self, value: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=dtype))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.w.fill_(value)


def network(seed: int = 0) -> nn.Sequential:
    """Layers with running statistics, an integer counter, and a shared weight."""
    torch.default_generator.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[3].weight = net[2].weight
    return net.double()


def inputs(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator, dtype=torch.float64)


def move(net: nn.Module, seed: int) -> None:
    """A training pass and a step, as far as an average can tell."""
    generator = torch.Generator().manual_seed(seed)
    net(inputs(seed))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def teacher_values(ema: EMA) -> dict[str, Tensor]:
    with ema.applied() as model:
        return values(model)
