"""What each of two processes does for the tests of batch norm over several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metaweight import ConfigurationError, GraphError

from .checks import check
from .process_checks import alone, ran
from .shared_out import Net, batch_norm, batches, parameters, program


class Doubled(nn.BatchNorm1d):
    """A batch norm with a computation of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class Handmade(nn.Module):
    """A batch norm of its own, whose statistics have torch's names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.running_mean += 0.1 * (x.mean(0) - self.running_mean)
                self.running_var += 0.1 * (x.var(0) - self.running_var)
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


def scripted(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = torch.jit.script(layer)
        return found


def twice() -> Sequence[nn.Module]:
    layer = nn.BatchNorm1d(6)
    return [layer, layer]


NORMS: dict[str, tuple[bool, Callable[[], Sequence[nn.Module]]]] = {
    "in two places": (True, twice),
    "cumulative": (True, lambda: [nn.BatchNorm1d(6, momentum=None)]),
    "untracked": (True, lambda: [nn.BatchNorm1d(6, track_running_stats=False)]),
    "torch's": (False, lambda: [nn.SyncBatchNorm(6)]),
}
"""Whether to ask for ``sync_batch_norm``, and the layers."""
NORM_CASES = [
    *(("in two places", kind) for kind in ("reweighting", "unroll", "penalty")),
    ("cumulative", "unroll"),
    ("untracked", "penalty"),
    ("torch's", "reweighting"),
    ("torch's", "unroll"),
]
"""Layers and hypergradients: all of each, and the pairs that have code of their own."""


@check
def norms(rank: int, world: int, folder: Path) -> Any:
    return {
        (name, kind): ran(
            program(kind, rank, world, norm=make, sync_batch_norm=asked and world > 1)
        )
        for name, kind in NORM_CASES
        for asked, make in (NORMS[name],)
    }


@check
def norms_unsynchronised(rank: int, world: int, folder: Path) -> Any:
    kinds = {"scripted": lambda: [scripted(nn.BatchNorm1d(6))], "handmade": lambda: [Handmade()]}
    return {name: ran(program("darts", rank, world, norm=make)) for name, make in kinds.items()}


@check
def norm_kept(rank: int, world: int, folder: Path) -> Any:
    """A layer with a hook and a second place outside of the module's children."""
    layer = nn.BatchNorm1d(3).double()
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    module = nn.Sequential(layer, nn.Linear(3, 1).double())
    module.layers_by_depth = [layer]  # type: ignore[assignment]
    data = batches(1, 2, rank, world)
    engine, _ = alone(rank, world, module, data, sync_batch_norm=world > 1, train_iters=2)
    engine.run()
    outside = module.layers_by_depth[0]  # type: ignore[index]
    return len(seen), outside is module[0], parameters(engine)


@check
def norm_of_an_empty_share(rank: int, world: int, folder: Path) -> Any:
    """A selection of samples, none of which is in the second process."""
    module = nn.Sequential(nn.BatchNorm1d(3)).double()
    module.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    alone(rank, world, module, [1], sync_batch_norm=world > 1)
    whole = batches(1, 1, 0, 1)[0][0]
    module(whole if rank == 0 else whole[:0])
    return module[0].running_mean, module[0].running_var


@check
def norms_refused(rank: int, world: int, folder: Path) -> Any:
    part = dist.new_group([0, 1])
    layers = [
        Doubled(3),
        scripted(nn.BatchNorm1d(3)),
        nn.SyncBatchNorm(3, process_group=part),
    ]
    messages = []
    for layer in layers:
        module = nn.Sequential(layer, nn.Linear(3, 1)).double()
        try:
            alone(rank, world, module, batches(1, 1, rank, world), sync_batch_norm=True)
        except ConfigurationError as error:
            messages.append(str(error))
    return messages


@check
def wrapped(rank: int, world: int, folder: Path) -> Any:
    inner = nn.Linear(3, 1).double()
    wrapped = nn.parallel.DistributedDataParallel(inner)
    alone(rank, world, nn.Sequential(wrapped), batches(1, 1, rank, world))


@check
def different_lengths(rank: int, world: int, folder: Path) -> Any:
    alone(rank, world, nn.Linear(3, 1).double(), batches(1, 3 + rank, rank, world))


@check
def module_replaced(rank: int, world: int, folder: Path) -> Any:
    """Another module and optimizer after a part of the run, other numbers in every process."""
    found = {}
    for kind in ("reweighting", "unroll"):
        engine = program(kind, rank, world, norm=batch_norm, sync_batch_norm=world > 1)
        engine.run()
        torch.default_generator.manual_seed(20 + rank)
        net = Net(3, norm=batch_norm)
        engine.low.set_module(net)
        engine.low.set_optimizer(torch.optim.SGD(net.parameters(), 0.1, momentum=0.5))
        engine.train_iters *= 2
        found[kind] = ran(engine)
    return found


@check
def modules_replaced_apart(rank: int, world: int, folder: Path) -> Any:
    _, fit = alone(rank, world, nn.Linear(3, 1).double(), batches(1, 1, rank, world))
    before = fit.module
    try:
        fit.set_module(nn.Linear(3, 1 + rank).double())
    except GraphError as error:
        return str(error), fit.module is before
    return "taken", False
